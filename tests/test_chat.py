"""Chat templates are untrusted code: what they may do, and what they may not."""

import time

import pytest

from tqlab.chat import fold_tool_results, render

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi {{ 7 * 6 }}"},
]


def test_renders():
    template = (
        "{{ bos_token }}{% for m in messages %}\n"
        "[{{ m['role'] }}] {{ m.content | trim }}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}[model]{% endif %}"
        "{% if enable_thinking %}<think>{% endif %}"
    )
    text = render(template, MESSAGES, bos_token="<s>")
    assert text == "<s>[system] Be brief.\n[user] Hi {{ 7 * 6 }}\n[model]"  # content is not code
    assert render(template, MESSAGES, thinking=True, bos_token="").endswith("[model]<think>")


def test_what_real_templates_use():
    template = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }} {{ messages[0].get('content').split(' ')[1] }} "
        "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %} "
        "{{ '=' * 3 }} {{ messages | tojson | length > 9 }} {{ tools is none }}"
        "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('!') }}"
    )
    assert render(template, MESSAGES) == "2 brief. a2b1 === True True!!"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['jinja2'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}{{ 1 / 0 }}",
        "{{ messages.append({}) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages.clear() }}",
    ],
)
def test_escapes_are_refused(template):
    messages = [dict(m) for m in MESSAGES]
    with pytest.raises(ValueError, match="the chat template failed: ") as caught:
        render(template, messages)
    assert "\n" not in str(caught.value)
    assert messages == MESSAGES


def test_a_format_string_sees_nothing():
    """str.format is replaced by a sandboxed one: the attribute comes out empty."""
    with pytest.raises(ValueError, match="the chat template failed: "):
        render("{{ '{0.__class__.__mro__}'.format(messages) }}", MESSAGES)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10 ** 10) %}x{% endfor %}",
        "{{ range(10 ** 10) | list }}",
        "{{ 'x' * 10 ** 11 }}",
        "{{ 10 ** 7 * 'x' }}",
        "{% set n = 10000000 %}{{ 'x' * n }}",
        "{{ [0] * 10 ** 11 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_bombs_are_refused(template):
    start = time.monotonic()
    with pytest.raises(ValueError, match="the chat template failed: ") as caught:
        render(template, MESSAGES)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.monotonic() - start < 5  # seconds; they take milliseconds


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('Roles must\n alternate!') }}", "Roles must alternate!"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content.nothing.more }}", "nothing"),
        ("{{ undefined_function() }}", "undefined_function"),
        ("{{ messages[7].content }}", "list object has no element 7"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ messages | nofilter }}", "nofilter"),
        ("{% include 'etc/passwd' %}", "no loader"),
    ],
)
def test_failures_say_why_in_one_line(template, said):
    with pytest.raises(ValueError, match="the chat template failed: ") as caught:
        render(template, MESSAGES)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# Two small templates of Gemma 4's kind. The older one reads only tool_responses; the newer one,
# known by its comment, looks for the results among the messages itself.
CALLS = """{%- macro shown(x) -%}
{%- if x is mapping -%}{% for k, v in x | dictsort %}{{ k }}:{{ v }}{% endfor -%}
{%- else -%}value:{{ x }}{%- endif -%}
{%- endmacro -%}
{%- macro calls(m) -%}
{%- for c in m.tool_calls %}<|tool_call>call:{{ c.function.name }}{}<tool_call|>{% endfor -%}
{%- endmacro -%}"""
OUTDATED = (
    CALLS
    + """{%- for m in messages -%}
<|turn>{{ m.role }}|{{ calls(m) if m.tool_calls }}
{%- for r in m.tool_responses -%}
<|tool_response>response:{{ r.name }}{{ '{' }}{{ shown(r.response) }}}<tool_response|>
{%- endfor -%}
{{ m.content }}<turn|>
{%- endfor -%}"""
)
CURRENT = (
    CALLS
    + """{#- OpenAI Chat Completions: results follow as messages -#}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}<|tool_response>{{ m.content }}<tool_response|>
{%- else -%}<|turn>{{ m.role }}|{{ calls(m) if m.tool_calls }}{{ m.content }}<turn|>{%- endif -%}
{%- endfor -%}"""
)
ASKED = {"role": "user", "content": "Hi"}


def called(*names, content=None):
    calls = [{"id": f"id-{n}", "type": "function", "function": {"name": n}} for n in names]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def result(content, **more):
    return {"role": "tool", "content": content, **more}


ANSWER = {"role": "assistant", "content": "22 degrees"}


def shown(template, *messages):
    return render(template, fold_tool_results(template, list(messages)))


def test_an_outdated_template_gets_results_inside_the_turn_that_called():
    text = shown(OUTDATED, ASKED, called("now"), result('{"t": 22}'), ANSWER, ASKED)
    turn = "<|tool_call>call:now{}<tool_call|><|tool_response>response:now{t:22}<tool_response|>"
    user = "<|turn>user|Hi<turn|>"
    assert text == f"{user}<|turn>assistant|{turn}22 degrees<turn|>{user}"
    # and the check can fail: unfolded, the result would be lost
    unfolded = render(OUTDATED, [ASKED, called("now"), result('{"t": 22}'), ANSWER])
    assert "tool_response" not in unfolded


def test_a_current_template_gets_the_messages_as_they_are():
    messages = [ASKED, called("now", content=""), result('{"t": 22}'), ANSWER]
    assert fold_tool_results(CURRENT, messages) is messages
    assert '<|tool_response>{"t": 22}<tool_response|><|turn>assistant|22' in shown(
        CURRENT, *messages
    )
    assert fold_tool_results("{{ messages }}", messages) is messages  # not Gemma 4's


def test_results_are_named_by_their_calls():
    both = called("a", "b")
    swapped = [result("2", tool_call_id="id-b"), result("[1]", tool_call_id="id-a")]
    assert "response:b{value:2}<tool_response|><|tool_response>response:a{value:[1]}" in shown(
        OUTDATED, both, *swapped
    )
    placed = shown(OUTDATED, both, result("x"), result("y"), result("z"))
    for part in ("response:a{value:x}", "response:b{value:y}", "response:unknown{value:z}"):
        assert part in placed
    assert "response:c{value:x}" in shown(OUTDATED, both, result("x", name="c"))


def test_folding_loses_no_text_and_changes_no_message():
    messages = [
        called("a", content="let me see"),
        result("[DIR] x"),
        ANSWER,
        called("b"),
        result(None),
    ]
    kept = [dict(m) for m in messages]
    folded = fold_tool_results(OUTDATED, messages)
    assert messages == kept
    assert [m["content"] for m in folded] == ["let me see", "22 degrees", ""]
    assert [r["response"] for m in folded for r in m.get("tool_responses", ())] == ["[DIR] x", None]
    assert fold_tool_results(OUTDATED, folded) == folded
    lone = [result("x"), ASKED]
    assert fold_tool_results(OUTDATED, lone) == lone


@pytest.mark.parametrize(
    "content", ["{" * 9999, "[" * 99999, "1" * 9999, "NaN", "\ufdd0", 5, ["x"]]
)
def test_any_result_is_folded(content):
    assert "<|tool_response>response:a{" in shown(OUTDATED, called("a"), result(content))
