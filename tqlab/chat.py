"""Chat templates from model files, rendered in jinja2's sandbox: they are untrusted code."""

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment


def render(template: str, messages: list[dict], thinking: bool = False, **names: str) -> str:
    """The prompt text, ending where the model's answer begins.

    `names` are further variables of the template, such as bos_token.
    Raises: ValueError with the template's own message when it refuses, fails or leaves the sandbox.
    """
    try:
        compiled = _environment().from_string(template)
        return compiled.render(
            messages=messages, add_generation_prompt=True, enable_thinking=thinking, **names
        )
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the chat template failed: {reason}") from None


def _environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.globals["raise_exception"] = _raise
    return env


def _raise(message: str):
    raise jinja2.TemplateError(message)
