"""Chat templates are untrusted code: what they may do, and what they may not."""

import time

import pytest

from tqlab.chat import render

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
