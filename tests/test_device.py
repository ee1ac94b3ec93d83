"""Choosing a device by name."""

import pytest
import torch

from tqlab import device as devices


@pytest.mark.parametrize(
    ("mps", "cuda", "expected"),
    [(True, True, "mps"), (False, True, "cuda"), (False, False, "cpu")],
)
def test_auto_prefers_the_accelerator(monkeypatch, mps, cuda, expected):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert devices.pick("auto") == torch.device(expected)
    assert devices.pick() == torch.device(expected)


@pytest.mark.parametrize("name", ["mps", "cuda"])
def test_a_missing_device_is_named(monkeypatch, name):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"'{name}' is not available here; use --device cpu"):
        devices.pick(name)


@pytest.mark.parametrize("name", ["gpu", "", "vulkan", "meta", "cpu:x"])
def test_unknown_names_list_the_known(name):
    with pytest.raises(ValueError, match=f"'{name}'; known: auto, mps, cuda, cpu"):
        devices.pick(name)


def test_a_device_passes_through(device):
    assert devices.pick(device) == device
    assert devices.pick(str(device)) == device
    assert devices.describe(device)


def test_a_cpu_says_its_threads():
    text = devices.describe(torch.device("cpu"))
    count = torch.get_num_threads()
    assert text.endswith(f"CPU, {count} thread" + "s" * (count > 1))
