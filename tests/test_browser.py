"""One real JupyterLab in a real Chromium: run a notebook, move a slider, see the figure change.

TQLAB_NOTEBOOK=FILE takes another notebook, TQLAB_SCREENSHOT=FILE keeps a picture of the end.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = Path(
    os.environ.get("TQLAB_NOTEBOOK", ROOT / "notebooks" / "02_quantization_error.ipynb")
)
CHROMIUM = shutil.which("chromium")
RUN_MS = 300_000
STEP_MS = 30_000

# The Run All menu entry is racy: this waits for the kernel, then runs the command behind it.
# page.evaluate has no time limit of its own, hence the race against a timer.
RUN_ALL = """async (limit) => {
    const run = async () => {
        const app = window.jupyterapp;
        await app.restored;
        const panel = app.shell.currentWidget;
        await panel.context.ready;
        await panel.sessionContext.ready;
        await panel.sessionContext.session.kernel.info;
        await app.commands.execute('notebook:run-all-cells');
    };
    const late = (_, fail) => setTimeout(() => fail(`not run within ${limit} ms`), limit);
    await Promise.race([run(), new Promise(late)]);
}"""
# Readout and pictures of the notebook cell that holds the first slider.
STATE = """() => {
    const cell = document.querySelector('.noUi-handle').closest('.jp-Cell');
    const sources = [...cell.querySelectorAll('img')].map((image) => image.src);
    return [cell.querySelector('.widget-readout').textContent, sources.join(' ')];
}"""
BOTH_CHANGED = f"""(before) => {{
    const now = ({STATE})();
    return now[0] !== before[0] && now[1] !== before[1];
}}"""
ERRORS = """() => [...document.querySelectorAll(
    '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]')]
    .map((output) => output.textContent).filter((text) => text.includes('Error'))"""


def write_settings(folder: Path) -> None:
    """Turn off the news prompt, and the windowing that leaves far-off cells without a DOM."""
    pages, settings = folder / "labconfig", folder / "lab" / "@jupyterlab" / "notebook-extension"
    pages.mkdir(parents=True)
    settings.mkdir(parents=True)
    disabled = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (pages / "page_config.json").write_text(json.dumps(disabled), "utf-8")
    windowing = json.dumps({"windowingMode": "none"})
    (settings / "tracker.jupyterlab-settings").write_text(windowing, "utf-8")


def lab_environment(config: Path) -> dict[str, str]:
    """The environment of a Lab that reads no setting of the user's and does little work."""
    own = {
        "JUPYTER_CONFIG_DIR": config,
        "JUPYTERLAB_SETTINGS_DIR": config / "lab",
        "JUPYTERLAB_WORKSPACES_DIR": config / "workspaces",
        "JUPYTER_RUNTIME_DIR": config / "runtime",
        "IPYTHONDIR": config / "ipython",
        "PYTHONPATH": ROOT,
        "TQLAB_SMOKE": "1",
    }
    return os.environ | {name: str(value) for name, value in own.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(url: str, server: subprocess.Popen, log: Path) -> None:
    """Poll the server's own status page."""
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text('utf-8')[-3000:]}")


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab that serves a copy of the notebook; yields the address that opens it."""
    config, work, log = tmp_path / "config", tmp_path / "work", tmp_path / "lab.log"
    work.mkdir()
    write_settings(config)
    shutil.copy(NOTEBOOK, work / NOTEBOOK.name)
    port, token = free_port(), secrets.token_hex(8)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={work}"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}"]
    with log.open("w") as output:
        environment = lab_environment(config)
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    base = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(f"{base}/api/status?token={token}", server, log)
        yield f"{base}/lab/tree/{NOTEBOOK.name}?token={token}&reset"
    finally:
        server.terminate()  # it shuts its kernels down
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture
def page():
    """A tab of the system's Chromium that talks to nobody but the Lab."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-dev-shm-usage"]
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser.new_page(viewport={"width": 1400, "height": 1100})
        browser.close()


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
@pytest.mark.skipif(not NOTEBOOK.is_file(), reason=f"no notebook {NOTEBOOK.name}")
def test_a_slider_changes_readout_and_figure(lab, page):
    page.set_default_timeout(4 * STEP_MS)  # a cold JupyterLab is slow
    page.goto(lab)
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.context?.isReady")
    page.evaluate(RUN_ALL, RUN_MS)
    assert page.evaluate(ERRORS) == []

    page.set_default_timeout(STEP_MS)
    handle = page.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    page.wait_for_function(f"() => ({STATE})()[1] !== ''")
    before = page.evaluate(STATE)
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(BOTH_CHANGED, arg=before)
    if target := os.environ.get("TQLAB_SCREENSHOT"):
        page.screenshot(path=target)
