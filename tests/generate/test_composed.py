"""Grammars of calls and reasoning over a vocabulary of bytes: what they take whole, and where they stop."""

from __future__ import annotations

import json

import pytest

from openbook.errors import InputError, Refusal
from openbook.generate.constraints import Constraint, Vocabulary, fault
from openbook.generate.grammars import Calls, Choice, Grammar, Json, Marks, Reasoned, Regex, Schema
from openbook.generate.sampling import Sampling

pytest.importorskip("llguidance")

SPECIAL = tuple(range(257, 264))  # ids without bytes
INTEGER = {"$ref": "#/$defs/whole"}
A = Schema.of(
    {"type": "object", "properties": {"a": INTEGER}, "required": ["a"], "additionalProperties": False,
     "$defs": {"whole": {"type": "integer"}}}
)  # fmt: skip
Z = Schema.of(
    {"type": "object", "properties": {"z": {"type": "null"}}, "required": ["z"], "additionalProperties": False}
)
FUNCTIONS = (("f", A), ("f2", Json()))
KEYS = ("name", "arguments")
TAGS = Marks(opens=("<tool>\n",), closes=("\n</tool>",), separator=("\n",), keys=KEYS)
LISTED = Marks(start=(257, " ["), separator=(", ",), end=("]",), keys=KEYS, id_key="id", id_length=9)
NAMED = Marks(opens=(257,), between=(258,))
NUMBERED = Marks(opens=(257,), between=(258,), behind=(259,), id_length=3)
FENCED = Marks(
    start=(257,), opens=(258, "function", 259), between=("\n```json\n",), closes=("\n```", 260), separator=("\n",),
    end=(261,),
)  # fmt: skip
BARE = Marks(keys=("name", "parameters"))
LOOSE = Marks(start=("Action: ```\n[",), end=("]```",), separator=(", ",), keys=KEYS)

ONE = '<tool>\n{"name": "f", "arguments": {"a": 1}}\n</tool>'
TWO = '<tool>\n{"name": "f2", "arguments": {"b": "</tool>"}}\n</tool>'
Text = str | tuple[str | int, ...]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary([*(bytes([byte]) for byte in range(256)), *[b""] * 8], eos=[256])


def follow(vocabulary: Vocabulary, grammar: Grammar, text: Text) -> bool | None:
    """Whether the output may end after this text; None: it cannot be written."""
    ids: list[int] = []
    for piece in [text] if isinstance(text, str) else text:
        ids += [piece] if isinstance(piece, int) else piece.encode()
    constraint = Constraint.compile(vocabulary, grammar)
    if constraint.prefix_ok(ids) < len(ids):
        return None
    for one in ids:
        constraint.accept(one)
    return constraint.whole


AUTO = Calls(functions=FUNCTIONS, marks=TAGS)
MUST = Calls(functions=FUNCTIONS, marks=TAGS, required=True)
THOUGHT = Reasoned(opening=("<think>",), closing=("</think>",), begun=False, then=AUTO)
SECRET = Reasoned(opening=(262,), closing=(263,), begun=False, then=AUTO)


@pytest.mark.parametrize(
    ("grammar", "text", "whole"),
    [
        (AUTO, "", True),
        (AUTO, "any <tool text </tool>", True),
        (AUTO, f"first {ONE}\n{TWO}", True),
        (AUTO, "first <tool>\n", False),
        (AUTO, "first <tool>x", None),
        (AUTO, ONE.replace("1", '"1"'), None),
        (AUTO, ONE.replace('"f"', '"g"'), None),
        (AUTO, f"{ONE} and text", None),
        (MUST, "text", None),
        (MUST, ONE, True),
        (Calls(functions=FUNCTIONS, marks=TAGS, required=True, parallel=False), f"{ONE}\n", None),
        (Calls(functions=FUNCTIONS, marks=TAGS, otherwise=Z), '{"z":null}', True),
        (Calls(functions=FUNCTIONS, marks=TAGS, otherwise=Z), ONE, True),
        (Calls(functions=FUNCTIONS, marks=TAGS, otherwise=Z), "text", None),
        (Calls(functions=FUNCTIONS, marks=TAGS, otherwise=Regex("[0-9]+")), "42", True),
        (Calls(functions=FUNCTIONS, marks=LISTED), ("so: ", 257, ' [{"name": "f", "arguments": {"a": 1}}]'), True),
        (
            Calls(functions=FUNCTIONS, marks=LISTED),
            (257, ' [{"name": "f2", "arguments": {}, "id": "abcdefgh1"}, {"name": "f", "arguments": {"a": 1}}]'),
            True,
        ),
        (Calls(functions=FUNCTIONS, marks=LISTED), (257, ' [{"name": "f2", "arguments": {}, "id": "short"'), None),
        (Calls(functions=FUNCTIONS, marks=NAMED), (257, "f2", 258, "{}", 257, "f", 258, '{"a": 1}'), True),
        (Calls(functions=FUNCTIONS, marks=NAMED), ("text", 258), None),
        (Calls(functions=FUNCTIONS, marks=NUMBERED), (257, "f2", 258, "a1b", 259, "{}"), True),
        (Calls(functions=FUNCTIONS, marks=NUMBERED), (257, "f2", 258, "a1", 259), None),
        (
            Calls(functions=FUNCTIONS, marks=FENCED),
            (257, 258, "function", 259, "f2\n```json\n{}\n```", 260, "\n", 258, "function", 259,
             'f\n```json\n{"a":2}\n```', 260, 261),
            True,
        ),
        (Calls(functions=FUNCTIONS, marks=BARE), '{"title": 1', True),
        (Calls(functions=FUNCTIONS, marks=BARE), '{"name": "f", "parameters": {"a": 1}}', True),
        (Calls(functions=FUNCTIONS, marks=BARE), '{"name": "somebody', None),
        (Calls(functions=FUNCTIONS, marks=BARE, otherwise=Z), '{"z": null}', True),
        (Calls(functions=FUNCTIONS, marks=BARE, otherwise=Z), '{"name": "f", "parameters": {"a": 1}}', True),
        (Calls(functions=FUNCTIONS, marks=BARE, otherwise=Z), '{"name": "f", "parameters": {"a": "', None),
        (Calls(functions=FUNCTIONS, marks=LOOSE), "Action is ```", True),
        (Calls(functions=FUNCTIONS, marks=LOOSE), 'Action:```[{"name": "f2", "arguments": {}}]```', True),
        (Calls(functions=FUNCTIONS, marks=LOOSE), "Action:\n```  [1", None),
        (THOUGHT, "plain text", True),
        (THOUGHT, "<think>free <tool> here", False),
        (THOUGHT, f"<think>free <tool> here</think>\n\n{ONE}", True),
        (THOUGHT, "<think>free</think>\n\n<tool>x", None),
        (SECRET, (262, "free <tool> here", 263, "\n", ONE), True),
        (SECRET, (262, "free", 263, "<tool>x"), None),
        (Reasoned(opening=("<t>",), closing=("</t>",), begun=True, then=Choice(("yes",))), "hm</t> yes", True),
        (Reasoned(opening=("<t>",), closing=("</t>",), begun=True, then=Choice(("yes",))), "hm</t> no", None),
        (Reasoned(opening=(262,), closing=(263,), begun=True, then=Z), ('{"z": null}',), False),
        (Reasoned(opening=(262,), closing=(263,), begun=True, then=Z), ("hm", 263, '{"z": null}'), True),
    ],
)  # fmt: skip
def test_what_may_be_written(vocabulary: Vocabulary, grammar: Grammar, text: Text, whole: bool | None) -> None:
    assert follow(vocabulary, grammar, text) is whole


def test_a_mark_of_another_id_is_another_grammar(vocabulary: Vocabulary) -> None:
    """Seeded: the mark is demanded by its id, not by being special."""
    text = (257, "f2", 258, "{}")
    assert follow(vocabulary, Calls(functions=FUNCTIONS, marks=NAMED), text) is True
    assert follow(vocabulary, Calls(functions=FUNCTIONS, marks=Marks(opens=(260,), between=(258,))), text) is None


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="no function"):
        Calls(functions=(), marks=TAGS)
    anchored = Schema.of({"$defs": {"a": {"$anchor": "here", "type": "null"}}, "$ref": "#here"})
    reason = Calls(functions=FUNCTIONS, marks=BARE, otherwise=anchored)
    with pytest.raises(Refusal, match=r"`\$anchor`"):
        fault(reason)
    assert fault(A) is None
    assert "cannot be honoured" in str(fault(Regex("(")))
    assert Sampling(grammar=THOUGHT).grammar == THOUGHT
    assert json.loads(A.text)["properties"] == {"a": INTEGER}
