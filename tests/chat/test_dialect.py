"""What is read off a chat template: marks, keys, forms of arguments and ids, reasoning; and what cannot be read."""

from __future__ import annotations

import pytest

from openbook.chat.dialect import Dialect, Reasoning
from openbook.chat.manners import Manners
from openbook.chat.messages import Message
from openbook.errors import Refusal
from tests.chat.dialects import (
    BARE,
    CALLS,
    FENCED,
    LISTED,
    MARKED,
    NAMED,
    SWITCH,
    TAGS,
    THINK,
    THINK_SPECIAL,
    template,
    tokenizer_with,
)

KEYS = ("name", "arguments")
KNOWN = {
    "tags": Dialect(opens="<tool_call>\n", closes="\n</tool_call>", separator="\n", keys=KEYS),
    "bare": Dialect(keys=("name", "parameters"), many=False),
    "listed": Dialect(start="[CALLS] [", separator=", ", end="]", keys=KEYS, id_key="id", id_length=9),
    "named": Dialect(opens="[CALLS]", between="[ARGS]"),
    "numbered": Dialect(opens="[CALLS]", between="<|sep|>", behind="[ARGS]"),
    "fenced": Dialect(
        start="<|calls|>",
        opens="<|call|>function<|sep|>",
        between="\n```json\n",
        closes="\n```<|/call|>",
        separator="\n",
        end="<|/calls|>",
        as_text=True,
        beside=False,
    ),
    "marked": Dialect(start="<|call|>[", separator=", ", end="]", keys=KEYS),
    "function": Dialect(opens="<function=", between=">", closes="</function>"),
    "lines": Dialect(start="<|calls|>", opens="\n", end="\n<|/calls|>", keys=KEYS),
    "action": Dialect(start="Action: ```json\n[", separator=", ", end="]```", keys=("tool_name", "parameters")),
}


def manners(calls: str = "", reasoning: str = "", prompt: str = "") -> Manners:
    return Manners(tokenizer_with(template(calls, reasoning, prompt)))


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    assert manners(CALLS[name]).dialect(True) == KNOWN[name]


@pytest.mark.parametrize("name", CALLS)
def test_calls_beside_reasoning(name: str) -> None:
    """Blocks of reasoning, written or empty, are no part of what calls are written in."""
    for prompt in ("", "<think>\n", SWITCH):
        assert manners(CALLS[name], THINK, prompt).dialect(True) == KNOWN[name]


def test_marks_that_begin_alike_are_not_cut_in_two() -> None:
    calls = """<calls>{% for call in message.tool_calls %}<call>{"name": "{{ call.function.name }}",
{{- ' "arguments": ' }}{{ call.function.arguments | tojson }}}</call>{% endfor %}</calls>"""
    found = manners(calls).dialect(True)
    assert (found.start, found.opens, found.closes, found.end) == ("<calls>", "<call>", "</call>", "</calls>")


def test_no_content_is_what_the_template_takes() -> None:
    calls = "{{ '' if 'x' in message.content }}" + TAGS
    assert manners(calls).dialect(True).blank == ""


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ("", "writes no calls that can be read"),
        ("{{ message.tool_calls[0].function.name }}()", "writes no calls that can be read"),
        ("<c>{{ message.tool_calls[0].function.arguments | tojson }}", "writes no calls that can be read"),
        (NAMED.replace("[ARGS]", "{{ call.id }}"), "writes ids into its calls"),
        ("{% set f = message.tool_calls[0].function %}{{ f.name }}: {{ f.arguments | tojson }}", "nothing tells from"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(calls: str, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        manners(calls).dialect(True)


def test_a_template_without_tools() -> None:
    tokenizer = tokenizer_with(template(TAGS).replace("if tools", "if false"))
    for _ in range(2):
        with pytest.raises(Refusal, match="does not know tools"):
            Manners(tokenizer).dialect(True)


def test_answers_in_parts() -> None:
    """A template that writes more than the text of an answer after its prompt: its answers are not read as text."""
    parted = template(TAGS).replace("<|assistant|>{{", "<|assistant|><|sep|>final<|call|>{{")
    with pytest.raises(Refusal, match="answers in parts"):
        Manners(tokenizer_with(parted)).dialect(True)


DROPPED = """{% set said = message.content or '' %}
{%- if '</think>' in said %}{% set said = said.split('</think>')[1] %}{% endif %}"""


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (template(TAGS), None),
        (template(TAGS, THINK), Reasoning(opening="<think>", closing="</think>")),
        (template(TAGS, THINK_SPECIAL), Reasoning(opening="<|think|>", closing="<|/think|>")),
        (template(BARE, THINK, SWITCH), Reasoning(opening="<think>", closing="</think>")),
        (
            template(LISTED, DROPPED).replace("{{ message.content or '' }}", "{{ said }}"),
            Reasoning(opening="<think>", closing="</think>"),
        ),
        (template(MARKED + "{# <seed>…</seed> #}", "", "<seed>\n"), Reasoning(opening="<seed>", closing="</seed>")),
        (template(FENCED + "{# <b>…</b> #}"), None),
    ],
)
def test_reasoning(source: str, expected: Reasoning | None) -> None:
    assert Manners(tokenizer_with(source)).reasoning(True) == expected


@pytest.mark.parametrize(
    ("prompt", "variables", "reasoned", "inside"),
    [
        ("", {}, True, False),
        ("<think>\n", {}, True, True),
        (SWITCH, {}, True, False),
        (SWITCH, {"enable_thinking": False}, False, False),
    ],
)
def test_where_an_answer_begins(prompt: str, variables: dict[str, bool], reasoned: bool, inside: bool) -> None:
    found = manners(TAGS, THINK, prompt)
    ids = found.ids([Message.user("Hello <think>")], (), variables)
    reasoning, begun = found._state(ids, False)
    assert (reasoning is not None, begun) == (reasoned, inside)
