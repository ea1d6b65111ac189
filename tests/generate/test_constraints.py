"""Structured output: what a grammar allows, what a schema may say, and what is refused with its place."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("llguidance")

from openbook.errors import InputError, OpenbookError
from openbook.generate.constraints import GAP, Constraint, Vocabulary, masks
from openbook.generate.grammars import FORMATS, Choice, Grammar, Json, Lark, Regex, Schema
from openbook.generate.sampler import Row, Sampler
from openbook.generate.sampling import Sampling

END, OTHER, HE, OPEN, EMPTY = 256, 257, 258, 259, 260
BYTES = [*(bytes([i]) for i in range(256)), b"<end>", b"<other>", b"he", b'{"', b""]
V = len(BYTES)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(BYTES, [END, OTHER])


def ids(constraint: Constraint, vocab: int | None = None) -> list[int]:
    return np.flatnonzero(constraint.allowed(vocab)).tolist()


def fits(vocabulary: Vocabulary, grammar: Grammar, text: str) -> bool:
    """Whether the whole text, byte by byte, and then the end are allowed."""
    constraint = Constraint.compile(vocabulary, grammar)
    raw = list(text.encode())
    return constraint.prefix_ok([*raw, END]) == len(raw) + 1


def test_every_split_is_allowed_and_the_end_only_where_the_text_is_whole(vocabulary: Vocabulary) -> None:
    constraint = Constraint.compile(vocabulary, Regex("(he)+h?"))
    assert ids(constraint) == [ord("h"), HE]
    constraint.accept(ord("h"))
    assert ids(constraint) == [ord("e")]
    constraint.accept(ord("e"))
    assert ids(constraint) == [ord("h"), END, OTHER, HE]
    constraint.accept(HE)
    assert not constraint.finished
    fork = constraint.copy()
    constraint.accept(OTHER)
    assert constraint.finished
    assert ids(constraint) == [END, OTHER]
    constraint.accept(END)
    constraint.rollback(4)  # the two ends, "he", "e"
    assert ids(constraint) == [ord("e")]
    assert ids(fork) == [ord("h"), END, OTHER, HE]


def test_ids_beyond_the_tokenizer_and_without_bytes_are_never_allowed(vocabulary: Vocabulary) -> None:
    constraint = Constraint.compile(vocabulary, Lark("start: /(.|\\n)*/"))
    wide = constraint.allowed(300)
    assert wide.shape == (300,)
    assert not wide[EMPTY:].any()
    assert constraint.allowed(100).shape == (100,)
    assert wide[[END, OTHER, HE, ord("x")]].all()


def test_stop_ids_of_the_request_end_only_whole_texts(vocabulary: Vocabulary) -> None:
    constraint = Constraint.compile(vocabulary, Regex("(he)+h?"), ends=[ord("h")])
    assert ids(constraint) == [HE]
    constraint.accept(HE)
    assert ids(constraint) == [ord("h"), END, OTHER, HE]
    constraint.accept(ord("h"))
    assert constraint.finished
    assert constraint.prefix_ok([END]) == 1
    assert constraint.prefix_ok([ord("e")]) == 0


def test_drafts_fit_as_far_as_they_could_be_accepted(vocabulary: Vocabulary) -> None:
    start = Constraint.compile(vocabulary, Schema('{"type":"object","properties":{"he":{"type":"integer"}}}'))
    rng = random.Random(4)
    for _ in range(50):
        text = list(b'{"he": 12}')
        draft = [*text[: rng.randrange(11)], rng.choice([END, HE, V + 7, 34, 49]), *text, END]
        stepped, count = start.copy(), 0
        for token in draft:
            if token >= V or not stepped.allowed()[token]:
                break
            stepped.accept(token)
            count += 1
        assert start.prefix_ok(draft) == count
    assert ids(start) == ids(Constraint.compile(vocabulary, Schema('{"type":"object","properties":{"he":{}}}')))


def test_characters_split_by_tokens(vocabulary: Vocabulary) -> None:
    constraint = Constraint.compile(vocabulary, Choice(("é", "è", "日本")))
    assert ids(constraint) == sorted({"é".encode()[0], "日".encode()[0]})
    constraint.accept("é".encode()[0])
    assert ids(constraint) == sorted(("é".encode()[1], "è".encode()[1]))
    assert not constraint.whole


def test_masks_of_a_batch_are_those_of_each(vocabulary: Vocabulary) -> None:
    grammars = [Json(), Regex("[a-f]+/\\n?"), Choice(("yes", "no", 'a "quoted"\nline \\ /'))]
    all_ = [Constraint.compile(vocabulary, grammar) for grammar in grammars]
    for vocab in (V, V + 40, 64):
        rows = masks(all_, vocab)
        assert all(np.array_equal(row, one.allowed(vocab)) for row, one in zip(rows, all_, strict=True))


ENFORCED: list[tuple[str, dict[str, Any] | bool, list[str], list[str]]] = [
    ("type", {"type": ["string", "null"]}, ["null", '"x"'], ["1", "{}"]),
    ("integer", {"type": "integer"}, ["0", "-12"], ["1.5", "01", '"1"']),
    ("enum", {"enum": ["a", 1, None, {"x": [1]}]}, ['"a"', '{"x":[1]}'], ["2", '{"x":[2]}']),
    ("const", {"const": {"a": "é\n/"}}, ['{"a":"é\\n/"}'], ['{"a":"e"}']),
    ("length", {"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"ééé"'], ['"a"', '"abcd"']),
    ("length of any", {"minLength": 2}, ['"ab"', "1"], ['"a"']),
    ("pattern", {"type": "string", "pattern": "^a+$"}, ['"aa"'], ['"ab"', '""']),
    ("loose pattern", {"type": "string", "pattern": "a.c"}, ['"xabcx"'], ['"xx"']),
    ("range", {"type": "number", "minimum": 2, "exclusiveMaximum": 5.5}, ["2", "5.4"], ["1", "5.5", "6"]),
    ("open range", {"type": "integer", "exclusiveMinimum": 2, "maximum": 11}, ["3", "11"], ["2", "12"]),
    ("multiple", {"type": "integer", "multipleOf": 3}, ["9", "0"], ["10"]),
    (
        "items",
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
        ["[1]"],
        ["[]", '["a"]', "[1,2,3]"],
    ),
    ("prefix", {"type": "array", "prefixItems": [{"type": "integer"}], "items": False}, ["[1]"], ["[1,2]", '["a"]']),
    (
        "old prefix",
        {"type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "string"}},
        ['[1,"a"]'],
        ["[1,2]"],
    ),
    (
        "required",
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]},
        ['{"a":1}'],
        ["{}", '{"b":1}'],
    ),
    ("required alone", {"type": "object", "required": ["z"]}, ['{"z":1}'], ["{}", '{"y":1}']),
    (
        "closed",
        {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
        ['{"a":1}', "{}"],
        ['{"b":1}'],
    ),
    ("additional", {"type": "object", "additionalProperties": {"type": "integer"}}, ['{"a":1}'], ['{"a":"x"}']),
    (
        "named and additional",
        {"type": "object", "properties": {"a": {"type": "integer"}}},
        ['{"b":"x"}'],
        ['{"a":"x"}', '{"b":1,"a":"x"}'],
    ),
    (
        "pattern properties",
        {"type": "object", "patternProperties": {"^x": {"type": "integer"}}},
        ['{"x1":1,"y":"a"}'],
        ['{"x1":"a"}'],
    ),
    (
        "properties count",
        {"type": "object", "minProperties": 1, "maxProperties": 2},
        ['{"a":1}'],
        ["{}", '{"a":1,"b":2,"c":3}'],
    ),
    ("any", {"type": "integer", "minimum": 3, "anyOf": [{"maximum": 5}, {"minimum": 10}]}, ["4", "10"], ["7", "2"]),
    ("all", {"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "b$"}]}, ['"ab"'], ['"ac"', '"bb"']),
    ("one", {"oneOf": [{"type": "integer"}, {"type": "null"}]}, ["null", "1"], ['"x"']),
    ("reference", {"$ref": "#/$defs/x", "minimum": 3, "$defs": {"x": {"type": "integer"}}}, ["4"], ["1", '"a"']),
    ("anchor", {"$ref": "#n", "definitions": {"x": {"$anchor": "n", "type": "integer"}}}, ["4"], ['"a"']),
    (
        "recursion",
        {
            "$ref": "#/$defs/x",
            "$defs": {
                "x": {"type": "object", "properties": {"n": {"$ref": "#/$defs/x"}}, "additionalProperties": False}
            },
        },
        ['{"n":{"n":{}}}'],
        ['{"n":1}'],
    ),
    (
        "notes",
        {
            "type": "null",
            "title": "t",
            "description": "d",
            "default": {"not": 1},
            "examples": [{"x": 1}],
            "$comment": "c",
        },
        ["null"],
        ["1"],
    ),
    (
        "hidden name",
        {"type": "object", "properties": {"a": {"type": "integer"}, "é": {"type": "integer"}}},
        ['{"a":1}'],
        ['{"\\u0061":"x"}', '{"\\u00e9":"x"}'],
    ),
    ("anything", True, ["1", "[{}]"], ["", "{"]),
]


@pytest.mark.parametrize("name", [case[0] for case in ENFORCED])
def test_enforced_keywords(name: str, vocabulary: Vocabulary) -> None:
    _, schema, good, bad = next(case for case in ENFORCED if case[0] == name)
    for text in good:
        assert fits(vocabulary, Schema.of(schema), text), text
    for text in bad:
        assert not fits(vocabulary, Schema.of(schema), text), text


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"properties": {"a": {"uniqueItems": True}}}, "`uniqueItems` at #/properties/a/uniqueItems"),
        ({"anyOf": [{}, {"not": {"type": "null"}}]}, "`not` at #/anyOf/1/not"),
        ({"properties": {"a/b": {"if": {}}}}, "`if` at #/properties/a~1b/if"),
        ({"x-guidance": {"lenient": True}}, "`x-guidance`"),
        ({"items": {"nullable": True}}, "`nullable` at #/items/nullable"),
        ({"minLenght": 3}, "`minLenght` at #/minLenght .*'minLength'"),
        ({"items": {"format": "regex"}}, "'regex' at #/items/format"),
        ({"minProperties": 2}, "`minProperties` at #/minProperties .* up to 1"),
        ({"$ref": "http://example.org/x"}, "`\\$ref` at # must point"),
        ({"$ref": "#/default", "default": {}}, "`\\$ref` at # must point"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
        ({"type": "strin"}, "strin"),
        ({"const": "a\u0001"}, "control characters"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"anyOf": {}}, "`anyOf` must be a list of schemas: got {} at #/anyOf"),
        ({"items": 3}, "got 3 at #/items"),
        (False, "no document"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(schema: Any, message: str, vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match=message):
        Constraint.compile(vocabulary, Schema.of(schema))


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (lambda: Schema('{"a":1'), "line 1, column 7"),
        (lambda: Schema('{"title":1,"title":2}'), "'title' twice"),
        (lambda: Schema('{"minimum":NaN}'), "NaN"),
        (lambda: Schema("[" * 50_000), "too deeply"),
        (lambda: Schema('{"items":' * 70 + "{}" + "}" * 70), "more than 64 levels"),
        (lambda: Schema('{"title":"' + "x" * 65_536 + '"}'), "at most 65536"),
        (lambda: Schema({"type": "null"}), "`schema` must be a text"),
        (lambda: Schema.of({"minimum": float("inf")}), "no JSON"),
        (lambda: Regex("(a"), "unclosed group"),
        (lambda: Regex(""), "`regex` must be a text"),
        (lambda: Regex("\ud800"), "lone surrogate"),
        (lambda: Choice(()), "no options"),
        (lambda: Choice("ab"), "sequence of texts"),
        (lambda: Lark("start: q"), 'unknown name: "q"'),
        (lambda: Lark('start: %json {"uniqueItems": true}'), "%json"),
        (lambda: Lark('start: a\n\na[temperature=0.5]: "[temperature]"'), "`temperature` .*line 3"),
    ],
)
def test_damaged_grammars_say_where(grammar: Any, message: str, vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match=message):
        Constraint.compile(vocabulary, grammar())


def test_every_format_is_known(vocabulary: Vocabulary) -> None:
    for name in FORMATS:
        assert not fits(vocabulary, Schema.of({"type": "string", "format": name}), '"?! "'), name


def test_whitespace_ends(vocabulary: Vocabulary) -> None:
    assert fits(vocabulary, Json(), '{\n  "a": [1, 2]\n}')
    assert fits(vocabulary, Json(), "{" + " " * GAP + "}")
    assert not fits(vocabulary, Json(), "{" + " " * (GAP + 1) + "}")
    assert not fits(vocabulary, Json(), "[]")


def test_a_sampling_is_checked_and_needs_a_vocabulary() -> None:
    with pytest.raises(InputError, match="`grammar` must be a Schema"):
        Sampling(grammar="{}")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`forced`"):
        Sampling(grammar=Json(), forced=(1,))
    with pytest.raises(InputError, match="`grammar` needs the bytes"):
        Row(Sampling(grammar=Json()), [1])
    assert hash(Sampling(grammar=Choice(("a",)))) == hash(Sampling(grammar=Choice(("a",))))


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_rows_with_a_grammar_write_it_and_their_mates_do_not_notice(temperature: float, vocabulary: Vocabulary) -> None:
    grammar = Schema(
        '{"type":"object","properties":{"he":{"type":"boolean"}},"required":["he"],"additionalProperties":false}'
    )
    held = Sampling(temperature=temperature, grammar=grammar, seed=3)
    free = Sampling(temperature=temperature, seed=4)

    def rows() -> list[Row]:
        start = Constraint.compile(vocabulary, grammar)
        ends = frozenset({END})
        return [
            Row(held, [1], ends, constraint=start),
            Row(free, [1]),
            Row(held, [1], ends, 1, constraint=start.copy()),
        ]

    def write(rows: list[Row]) -> list[list[int]]:
        sampler = Sampler(rows, V + 3)
        for step in range(200):
            logits = torch.randn(1, V + 3, generator=torch.Generator().manual_seed(step)).expand(len(rows), -1).clone()
            logits[:, list(b" \n\r\t")] = -9.0
            sampler.commit(sampler.choose(logits).tolist())
        return [row.output for row in rows]

    together = write(rows())
    assert together == [write([row])[0] for row in rows()]
    for output in (together[0], together[2]):
        length = min(output.index(end) for end in (END, OTHER) if end in output)
        assert set(output[length:]) <= {END, OTHER}
        document = json.loads(b"".join(BYTES[i] for i in output[:length]))
        assert set(document) == {"he"}
        assert isinstance(document["he"], bool)


def test_a_token_that_does_not_fit_is_an_error(vocabulary: Vocabulary) -> None:
    constraint = Constraint.compile(vocabulary, Regex("ab"))
    with pytest.raises(OpenbookError, match="does not fit"):
        constraint.accept(ord("b"))
