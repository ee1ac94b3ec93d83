"""Chat prompts: templates from model files, which are untrusted code, and hand-built fallbacks.

Templates run in jinja2's sandbox (spec gemma4 5).
"""

import json
import re
from datetime import datetime

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

_THOUGHT = re.compile(r"<\|channel>thought.*?(?:<channel\|>|\Z)", re.DOTALL)
_EMPTY_CHANNEL = re.compile(r"<\|channel>\s*<channel\|>")
_LONE_END = re.compile(r"\s*(?:<channel\|>\s*)+\Z")
_CALL, _READS_TOOLS = "<|tool_call>call:", "OpenAI Chat Completions:"  # in Gemma 4's templates
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # noncharacters: never in real text


def render(
    template: str,
    messages: list[dict],
    thinking: bool = False,
    tools: list[dict] | None = None,
    **names: str,
) -> str:
    """The prompt text, ending where the model's answer begins.

    `names` are further variables of the template, such as bos_token.
    Raises: ValueError with the template's own message when it refuses, fails or leaves the sandbox.
    """
    try:
        compiled = _environment().from_string(template)
        return compiled.render(
            messages=messages,
            tools=tools,
            add_generation_prompt=True,
            enable_thinking=thinking,
            **names,
        )
    except Exception as error:  # whatever untrusted code brings about is its failure
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the chat template failed: {reason}") from None


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox bounds range(); this bounds what * and ** make, too."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context, operator, left, right):
        sizes = [len(x) for x in (left, right) if hasattr(x, "__len__")]
        times = [abs(x) for x in (left, right) if isinstance(x, (int, float))]
        if operator == "**" and max(times, default=0) > 1000:
            raise SecurityError("a power of or by more than 1000")
        if sizes and times and sizes[0] * times[0] > 1_000_000:
            raise SecurityError(f"a repetition of {sizes[0] * times[0]} items")
        return super().call_binop(context, operator, left, right)


def _environment() -> ImmutableSandboxedEnvironment:
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    env.filters["tojson"] = _tojson  # jinja2's own escapes <, > and & for web pages
    return env


def _raise(message: str):
    raise jinja2.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def strip_channels(text: str) -> str:
    """A Gemma 4 answer without its thoughts, empty channels and a left-over end mark.

    A thought that was cut off before its end goes too.
    """
    text = _EMPTY_CHANNEL.sub("", _THOUGHT.sub("", text))
    return _LONE_END.sub("", text)


def without_thoughts(message: dict) -> dict:
    """The message; the model's own past ones without their thoughts."""
    content = message.get("content")
    if message.get("role") not in ("assistant", "model") or not isinstance(content, str):
        return message
    return {**message, "content": strip_channels(content)}


def fold_tool_results(template: str, messages: list[dict]) -> list[dict]:
    """The messages as `template` reads them: an outdated Gemma 4 one knows no role "tool".

    There, the results become the calling turn's tool_responses, and the answer its content. Such a
    template writes tool calls, but lacks the comment of those that look for results themselves.
    Source: spec gemma4 5.
    """
    if _CALL not in template or _READS_TOOLS in template:
        return messages
    folded: list[dict] = []
    for message in messages:
        last = folded[-1] if folded else {}
        if message.get("role") == "tool" and last.get("tool_calls"):
            folded[-1] = _with_result(last, message)
        elif _answers(message, last):
            folded[-1] = {**last, "content": message["content"]}
        else:
            folded.append(message)
    return folded


def _answers(message: dict, last: dict) -> bool:
    """Whether a message is the text that goes with the calls and results of the one before."""
    own = message.get("role") in ("assistant", "model") and not message.get("tool_calls")
    return own and "tool_responses" in last and not last["content"] and bool(message.get("content"))


def _with_result(turn: dict, result: dict) -> dict:
    """The calling turn with one more result, which is data where its text is JSON."""
    done = turn.get("tool_responses", [])
    calls = [(c.get("id"), (c.get("function") or c).get("name")) for c in turn["tool_calls"]]
    by_id = next((name for key, name in calls if key and key == result.get("tool_call_id")), None)
    by_place = calls[len(done)][1] if len(done) < len(calls) else None
    name = by_id or result.get("name") or by_place or "unknown"
    response = {"name": name, "response": _parsed(result.get("content"))}
    return {**turn, "content": turn.get("content") or "", "tool_responses": [*done, response]}


def _parsed(content):
    try:
        return json.loads(content)
    except (TypeError, ValueError, RecursionError):
        return content


def unused_mark(value) -> str:
    """A character that occurs nowhere in `value`. Raises ValueError when all are taken."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    for mark in _MARKS:
        if mark not in text:
            return mark
    raise ValueError("the messages use every Unicode noncharacter; remove one")


def shield(value, control: re.Pattern, mark: str):
    """`value` with `mark` behind every character that `control` finds, in all strings and keys."""
    if isinstance(value, str):
        return control.sub(rf"\1{mark}", value)
    if isinstance(value, dict):
        return {shield(k, control, mark): shield(v, control, mark) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [shield(inner, control, mark) for inner in value]
    return value


def gemma4_prompt(
    messages: list[dict], thinking: bool, bos: str, primer: bool, tools: list[dict] | None = None
) -> str:
    """Gemma 4's prompt without a template.

    `primer`: close an empty thought when thinking is off, as all but E2B and E4B want it.
    Raises: ValueError for tools, and contents that are not text.
    """
    _refuse_tools(tools)
    system, rest = _split_system(messages)
    if thinking:
        system = f"<|think|>\n{system}"
    turns = [("system", system)] if system else []
    for message in map(without_thoughts, rest):
        turns.append((_role(message), _content(message)))
    text = bos + "".join(f"<|turn>{role}\n{content}<turn|>\n" for role, content in turns)
    closed = "<|channel>thought\n<channel|>" if primer and not thinking else ""
    return f"{text}<|turn>model\n{closed}"


def gemma3_prompt(messages: list[dict], bos: str, tools: list[dict] | None = None) -> str:
    """Gemma 3's prompt without a template: what the system says goes before the first turn's text.

    Raises: ValueError for tools, and contents that are not text.
    """
    _refuse_tools(tools)
    system, rest = _split_system(messages)
    parts, before = [bos], f"{system}\n\n" if system else ""
    for message in rest:
        role, content = _role(message), _content(message)
        parts.append(f"<start_of_turn>{role}\n{before}{content}<end_of_turn>\n")
        before = ""
    return "".join(parts) + "<start_of_turn>model\n"


def _refuse_tools(tools) -> None:
    if tools:
        raise ValueError("this file has no chat template, and tools need one")


def _split_system(messages: list[dict]) -> tuple[str, list[dict]]:
    """The leading system message's text, and the others."""
    if messages and messages[0].get("role") in ("system", "developer"):
        return _content(messages[0]), messages[1:]
    return "", messages


def _role(message: dict) -> str:
    role = message.get("role")
    if role not in ("user", "assistant", "model", "system", "developer"):
        raise ValueError(f"a message's role is {role!r}: user, assistant and system are known")
    return {"assistant": "model", "developer": "system"}.get(role, role)


def _content(message: dict) -> str:
    """A message's text, trimmed; the text parts of a list joined."""
    content = message.get("content")
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f"a message's content is {type(content).__name__}, expected text")
    return content.strip()
