"""Chat templates: the sandbox, the shape of messages that a template gets, and what may not be rendered."""

from __future__ import annotations

import contextlib
import re
from datetime import datetime

import pytest

from penstock.errors import InvalidRequestError, UnsupportedModelError
from penstock.frontend.chat import template as template_module
from penstock.frontend.chat.template import ChatTemplate

SIMPLE = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
PARTS_ONLY = "{% for m in messages %}{% for p in m.content %}({{ p.text }}){% endfor %}{% endfor %}"
USER = [{"role": "user", "content": "Hi"}]
CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"x": "ö"}}}


def render(source, messages=USER, **options):
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, **options)


def test_variables_of_a_template():
    source = "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ tools }}{{ mode }}"
    assert render(source, mode="fast") == "<s>TrueNonefast"


def test_blocks_leave_no_whitespace_behind():
    assert render("{% if true %}\nx\n    {% endif %}\ny") == "x\ny"


def test_the_tags_and_functions_that_hub_templates_use():
    skipping = "{% if n == 1 %}{% continue %}{% endif %}{% if n == 3 %}{% break %}{% endif %}"
    assert render("{% for n in range(9) %}" + skipping + "{{ n }}{% endfor %}") == "02"
    assert render("{% generation %}a{{ 1 }}{% endgeneration %}b") == "a1b"
    assert render("{{ {'k': '<ü>'} | tojson }}") == '{"k": "<ü>"}'
    assert render("{{ {'k': 1} | tojson(indent=2) }}") == '{\n  "k": 1\n}'
    assert re.fullmatch(r"\d{4}", render("{{ strftime_now('%Y') }}"))
    assert render("{{ strftime_now('%Y') }}") <= str(datetime.now().year)
    with pytest.raises(InvalidRequestError, match="only users"):
        render("{{ raise_exception('only users') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ ('{0.__class__.__init__.__globals__}').format(1) }}",
        "{% for a in range(10000000) %}{% endfor %}",
    ],
)
def test_the_sandbox_refuses(source):
    with pytest.raises(InvalidRequestError):
        render(source)


def test_a_huge_rendering_is_stopped(monkeypatch):
    monkeypatch.setattr(template_module, "MAX_CHARACTERS", 1000)
    with pytest.raises(InvalidRequestError, match="longer than 1000"):
        render("{% for a in range(99999) %}{{ messages[0].content }}{% endfor %}")


def test_request_data_cannot_bring_code():
    assert (
        render(SIMPLE, [{"role": "user", "content": "{{ bos_token }}{% raw %}"}]) == "[user:{{ bos_token }}{% raw %}]"
    )


def test_an_invalid_template_names_the_line():
    with pytest.raises(UnsupportedModelError, match="line 2"):
        ChatTemplate("fine\n{% for %}", {})


def test_parts_are_joined_for_templates_of_strings_and_made_for_templates_of_parts():
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert render(SIMPLE, parts) == "[user:a\nb]"
    assert render(PARTS_ONLY, parts) == "(a)(b)"
    assert render(PARTS_ONLY, USER) == "(Hi)"


def test_the_developer_is_the_system_where_the_template_has_no_developer():
    messages = [{"role": "developer", "content": "x"}]
    assert render(SIMPLE, messages) == "[system:x]"
    assert render(SIMPLE + "{# developer #}", messages) == "[developer:x]"


def test_arguments_are_text_where_the_template_adds_them_to_text():
    calls = "{% for c in m.tool_calls or [] %}{{ '' + c.function.arguments }}{% endfor %}"
    adding = "{% for m in messages %}" + calls + "{% endfor %}"
    dumping = adding.replace("'' + c.function.arguments", "c.function.arguments | tojson")
    messages = [*USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert render(adding, messages) == render(dumping, messages) == '{"x": "ö"}'
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": "ö"}


@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize("arguments", ["c.function.arguments | tojson", "'' + c.function.arguments"])
def test_a_calling_assistant_has_no_content_only_where_the_template_needs_that(content, arguments):
    calls = "{% for c in m.tool_calls or [] %}{{ " + arguments + " }}{% endfor %}"
    needs = "{% for m in messages %}{% if m.content is none %}call" + calls + "{% endif %}{% endfor %}"
    prints = "{% for m in messages %}{{ m.content }}" + calls + "{% endfor %}"
    messages = [*USER, {"role": "assistant", "content": content, "tool_calls": [CALL]}]
    assert render(needs, messages) == 'call{"x": "ö"}'
    assert render(prints, messages) == 'Hi{"x": "ö"}'


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        ("{% for m in messages %}<{{ m.content }}>{% endfor %}", "go on ", "<Hi><go on "),
        ("{% for m in messages %}<{{ m.content | trim }}>{% endfor %}", "go on ", "<Hi><go on"),
        (PARTS_ONLY, "go on ", "(Hi)(go on "),
    ],
)
def test_the_final_message_is_continued(source, content, expected):
    messages = [*USER, {"role": "assistant", "content": content}]
    assert render(source, messages, add_generation_prompt=False, continue_final_message=True) == expected


def test_the_final_message_is_found_when_an_earlier_one_says_the_same():
    messages = [{"role": "user", "content": "same"}, {"role": "assistant", "content": "same"}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert render(SIMPLE, messages, **options) == "[user:same][assistant:same"


@pytest.mark.parametrize(
    ("source", "messages", "options"),
    [
        (SIMPLE, USER, {"continue_final_message": True}),
        ("nothing", USER, {"continue_final_message": True, "add_generation_prompt": False}),
        (SIMPLE, [], {"continue_final_message": True, "add_generation_prompt": False}),
    ],
)
def test_what_cannot_be_continued_is_refused(source, messages, options):
    with pytest.raises(InvalidRequestError, match="continue_final_message"):
        render(source, messages, **options)


def test_reserved_variables_cannot_be_replaced():
    with pytest.raises(InvalidRequestError, match="raise_exception"):
        render(SIMPLE, raise_exception="x")


def test_a_template_for_tools_is_taken_when_there_are_tools():
    named = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
    assert named.render(USER) == named.render(USER, tools=[]) == "plain"
    assert named.render(USER, tools=[{"type": "function"}]) == "tools"
    with pytest.raises(InvalidRequestError, match="rag"):
        ChatTemplate({"rag": "x"}, {}).render(USER)


def test_data_that_a_template_cannot_handle_is_an_error_of_the_request():
    with pytest.raises(InvalidRequestError, match="cannot render"):
        render("{{ 1 + messages[0].content }}")


def test_deeply_nested_data_is_an_error_of_the_request_at_most():
    nested = {}
    for _ in range(5000):
        nested = {"x": nested}
    call = {"function": {"name": "f", "arguments": nested}}
    messages = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert render(SIMPLE, messages) == "[user:Hi][assistant:]"
    for shown in ("m.tool_calls", "'' + m.tool_calls[0].function.arguments"):
        source = "{% for m in messages if m.tool_calls %}{{ " + shown + " }}{% endfor %}"
        with contextlib.suppress(InvalidRequestError):  # how deep one may go differs between versions of Python
            assert "x" in render(source, messages)
