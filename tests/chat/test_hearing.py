"""The law of reading an answer as it comes: however it is cut into pieces, the parts that are heard are the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbook.chat.dialect import Dialect, Reasoning, as_read
from openbook.chat.hearing import Heard, Hearing
from openbook.chat.manners import Manners
from openbook.chat.messages import Message, ToolCall
from openbook.errors import InputError
from openbook.text import Tokenizer
from tests.chat.dialects import CALLS, template, tokenizer_with

THINK = Reasoning(opening="<think>", closing="</think>")
HOSTILE = [
    {},
    {"city": "Oslo", "days": 3},
    {"text": 'a "quote", a \\ and a line\nbreak'},
    {"text": '</tool_call>[ARGS]<|/call|>```]}{"name": "f"', "deep": {"list": [1, {"a": [[]]}, "]"]}},
    {"ключ": "Zürich 🦊", "": None},
]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {name: tokenizer_with(template(calls)) for name, calls in CALLS.items()}


@pytest.fixture(scope="module")
def dialects(tokenizers: dict[str, Tokenizer]) -> dict[str, Dialect]:
    return {name: Manners(tokenizer).dialect(True) for name, tokenizer in tokenizers.items()}


def heard(
    pieces: Sequence[str], dialect: Dialect | None, reasoning: Reasoning | None = None, inside: bool = False
) -> Heard:
    """All that is heard, joined: calls as (id, name, arguments) in their order."""
    hearing = Hearing(dialect, reasoning, inside=inside, names=("f", "weather"))
    return whole([*(hearing.feed(piece) for piece in pieces), hearing.finish()])


def whole(parts: Sequence[Heard]) -> Heard:
    """Joins parts; that a call begins with its head, and once, is checked."""
    calls: dict[int, list[str]] = {}
    for part in (call for one in parts for call in one.calls):
        if part.index not in calls:
            assert part.name
            assert part.id
            assert part.index == len(calls)
            calls[part.index] = [part.id, part.name, ""]
        else:
            assert not part.name
            assert not part.id
        calls[part.index][2] += part.arguments
    joined = tuple(map(tuple, calls.values()))
    return Heard("".join(one.text for one in parts), "".join(one.reasoning for one in parts), joined)  # type: ignore[arg-type]


def cuts(text: str) -> Iterator[list[str]]:
    yield list(text)
    for at in range(1, len(text)):
        yield [text[:at], text[at:]]


def said(tokenizer: Tokenizer, calls: Sequence[tuple[str, object]], content: str | None = None) -> tuple[str, Dialect]:
    """The answer that a template writes for these calls, and its dialect."""
    dialect = Manners(tokenizer).dialect(True)
    number = "abcdefgh{}" if dialect.id_length == 9 else "call_{}"
    asked = tuple(
        ToolCall(id=number.format(i), name=name, arguments=json.dumps(arguments, ensure_ascii=False))
        for i, (name, arguments) in enumerate(calls)
    )
    talk = [Message.user("Hello"), Message(role="assistant", content=content, tool_calls=asked)]
    text = tokenizer.render_chat(as_read(talk, dialect, str), add_generation_prompt=False, tools=[{"name": "weather"}])
    before = tokenizer.render_chat([talk[0].as_dict()], tools=[{"name": "weather"}])
    assert text.startswith(before)
    return text.removeprefix(before).removesuffix("<|end|>"), dialect


class TestRoundTrip:
    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("arguments", HOSTILE)
    def test_what_a_template_writes_is_read_however_it_is_cut(
        self, tokenizers: dict[str, Tokenizer], name: str, arguments: dict[str, object]
    ) -> None:
        written = [("weather", arguments), ("f", {"a": [1]})]
        raw, dialect = said(tokenizers[name], written if name != "bare" else written[:1])
        expected = heard([raw], dialect)
        assert expected.text == ""
        assert [(name, json.loads(text)) for _, name, text in expected.calls] == written[: len(expected.calls)]  # type: ignore[misc]
        assert len(expected.calls) == (1 if name == "bare" else 2)
        for pieces in cuts(raw):
            assert heard(pieces, dialect) == expected
        again = [(tool, json.loads(text)) for _, tool, text in expected.calls]  # type: ignore[misc]
        assert said(tokenizers[name], again)[0] == raw

    @pytest.mark.parametrize("name", sorted(CALLS.keys() - {"bare", "fenced"}))
    def test_text_before_calls(self, tokenizers: dict[str, Tokenizer], name: str) -> None:
        raw, dialect = said(tokenizers[name], [("f", {})], content="I look < it up.")
        for pieces in cuts(raw):
            assert heard(pieces, dialect).text == "I look < it up."
            assert len(heard(pieces, dialect).calls) == 1


WORDS = [
    "<tool_call>", "</tool_call>", "<tool", "\n", " ", '{"name": "f", "arguments": ', '{"a": "}"}', "}", "{", "[", "]",
    ", ", "[CALLS]", "[ARGS]", "f", "<|calls|>", "<|call|>", "function<|sep|>", "\n```json\n", "\n```", "<|/call|>",
    "<|/calls|>", "<function=", "</function>", "x", '"', "\\", "<think>", "</think>", '"name"', ":", "é",
    '{"parameters": {"b": 1}, "name": "f"}', '{"name": "f", "arguments": {"a": 1}, "id": "123456789"}',
]  # fmt: skip


class TestLaw:
    @given(data=st.data())
    @settings(max_examples=150, deadline=None)
    def test_any_text_any_cut(self, dialects: dict[str, Dialect], data: st.DataObject) -> None:
        dialect = data.draw(st.sampled_from([None, *dialects.values()]))
        reasoning, inside = data.draw(st.sampled_from([(None, False), (THINK, False), (THINK, True)]))
        words = data.draw(st.lists(st.sampled_from(WORDS), max_size=12))
        raw = "".join(words)
        expected = heard([raw], dialect, reasoning, inside)
        places = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=6)))
        pieces = [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True)]
        assert heard(pieces, dialect, reasoning, inside) == expected
        assert heard(list(raw), dialect, reasoning, inside) == expected
        if not expected.calls and reasoning is None:
            assert expected.text == raw

    def test_a_reader_that_looks_at_pieces_breaks_it(
        self, dialects: dict[str, Dialect], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Seeded: a piece without the first character of a mark is taken for text, whatever was held back."""
        raw = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
        expected = heard([raw], dialects["tags"])
        feed = Hearing.feed

        def hasty(self: Hearing, piece: str) -> Heard:
            return feed(self, piece) if "<" in piece or self.begun else Heard(text=piece)

        monkeypatch.setattr(Hearing, "feed", hasty)
        assert heard([raw], dialects["tags"]) == expected
        assert any(heard(pieces, dialects["tags"]) != expected for pieces in cuts(raw))


class TestText:
    @pytest.mark.parametrize(
        ("name", "raw"),
        [
            ("tags", "<tool_call>\nnothing of the kind</tool_call>"),
            ("tags", '<tool_call>\n{"arguments": {}}\n</tool_call>'),
            ("tags", '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>'),
            ("tags", '<tool_call>\n{"name": "\\ud800", "arguments": {}}\n</tool_call>'),
            ("tags", "a <tool_cal"),
            ("tags", "a < b <tool> c  \n"),
            ("tags", '<tool_call>\n{"name": "f", "argu'),
            ("bare", '{"name": "unknown", "parameters": {}}'),
            ("bare", '{"a": 1, "name": "f"}'),
            ("bare", ' text {"name": "f", "parameters": {}}'),
            ("listed", "[CALLS] and so on"),
            ("named", "[CALLS]no such[ARGS]{}"),
            ("named", "[CALLS]" + "x" * 300),
            ("fenced", "<|calls|><|call|>function<|sep|>f\n```python\n"),
            ("marked", "<|call|>[1, 2]"),
            ("function", "<function=f>(1)</function>"),
        ],
    )
    def test_what_is_no_call_is_text(self, dialects: dict[str, Dialect], name: str, raw: str) -> None:
        assert heard([raw], dialects[name]) == Heard(text=raw)
        assert heard(list(raw), dialects[name]) == Heard(text=raw)

    def test_a_call_after_what_is_none(self, dialects: dict[str, Dialect]) -> None:
        raw = '<tool_call>no <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call> yes'
        found = heard([raw], dialects["tags"])
        assert found.text == "<tool_call>noyes"
        assert found.calls == (("call_0", "f", '{"a": 1}'),)

    def test_arguments_that_end_early(self, dialects: dict[str, Dialect]) -> None:
        found = heard(['<tool_call>{"name": "f", "arguments": {"a": "x'], dialects["tags"])
        assert found == Heard(calls=(("call_0", "f", '{"a": "x'),))  # type: ignore[arg-type]

    def test_what_follows_instead_of_the_closing_mark(self, dialects: dict[str, Dialect]) -> None:
        found = heard(['<tool_call>{"name": "f", "arguments": {}} oops'], dialects["tags"])
        assert found == Heard(text="oops", calls=(("call_0", "f", "{}"),))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("written", "arguments"),
        [
            ('{"name": "f"}', "{}"),
            ('{"name": "f", "arguments": null}', "{}"),
            ('{"arguments": {"a": "}"}, "name": "f"}', '{"a": "}"}'),
            ('{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
            ('{"type": "function", "name": "f", "x": [1, "]"], "arguments": {"a":1}, "y": 2 }', '{"a":1}'),
        ],
    )
    def test_other_ways_to_write_a_call(self, dialects: dict[str, Dialect], written: str, arguments: str) -> None:
        for pieces in cuts(f"<tool_call>{written}</tool_call>"):
            assert heard(pieces, dialects["tags"]) == Heard(calls=(("call_0", "f", arguments),))  # type: ignore[arg-type]

    def test_arguments_come_as_they_are_written(self, dialects: dict[str, Dialect]) -> None:
        hearing = Hearing(dialects["tags"])
        assert hearing.feed('ok <tool_call>\n{"name": "f", "argum') == Heard(text="ok")
        (head,) = hearing.feed('ents": ').calls or hearing.feed("{").calls[:1]
        assert (head.id, head.name) == ("call_0", "f")
        assert [part.arguments for part in hearing.feed('"a": 1').calls] == ['"a": 1']
        assert hearing.feed("}}\n</tool_call>").calls[0].arguments == "}"

    def test_an_answer_in_json_is_not_held_back(self, dialects: dict[str, Dialect]) -> None:
        hearing = Hearing(dialects["bare"], names=["f"])
        assert hearing.feed('{"title"') == Heard(text='{"title"')

    def test_the_models_own_ids(self, dialects: dict[str, Dialect]) -> None:
        raw = '[CALLS] [{"id": "abcdefgh1", "name": "f", "arguments": {}}, {"name": "f", "id": "no", "arguments": {}}]'
        assert [one[0] for one in heard([raw], dialects["listed"]).calls] == ["abcdefgh1", "call_1"]  # type: ignore[index]
        raw = "[CALLS]f<|sep|>number 7[ARGS]{}[CALLS]f<|sep|>number 7[ARGS]{}"
        assert [one[0] for one in heard([raw], dialects["numbered"]).calls] == ["number 7", "call_1"]  # type: ignore[index]


class TestReasoning:
    @pytest.mark.parametrize(
        ("raw", "inside", "reasoning", "text"),
        [
            ("<think>\nWhy?\n</think>\n\nBecause.", False, "Why?", "Because."),
            ("\nWhy < not?\n</think>\n\nBecause.", True, "Why < not?", "Because."),
            ("  <think></think>Yes", False, "", "Yes"),
            ("No thinking. <think>a</think>", False, "", "No thinking. <think>a</think>"),
            ("Still at it </thin", True, "Still at it </thin", ""),
            (" <thinner>", False, "", " <thinner>"),
        ],
    )
    def test_apart_from_text(self, raw: str, inside: bool, reasoning: str, text: str) -> None:
        for pieces in cuts(raw):
            assert heard(pieces, None, THINK, inside) == Heard(text=text, reasoning=reasoning)

    def test_a_call_is_one_only_after_it(self, dialects: dict[str, Dialect]) -> None:
        call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
        found = heard([f"<think>{call}</think>\n{call}"], dialects["tags"], THINK)
        assert found == Heard(reasoning=call, calls=(("call_0", "f", "{}"),))  # type: ignore[arg-type]


def test_content_gives_way_where_a_template_does_not_write_it_beside_calls(tokenizers: dict[str, Tokenizer]) -> None:
    raw, dialect = said(tokenizers["fenced"], [("f", {"a": 1})], content="I look it up.")
    assert heard([raw], dialect) == Heard(calls=(("call_0", "f", '{"a": 1}'),))  # type: ignore[arg-type]


def test_arguments_of_the_past_must_be_objects(dialects: dict[str, Dialect]) -> None:
    call = ToolCall(id="1", name="f", arguments='{"a": ')
    talk = [Message(role="assistant", tool_calls=(call,))]
    with pytest.raises(InputError, match=r"arguments of a call of 'f' .* must be a JSON object"):
        as_read(talk, dialects["tags"], str)
    assert as_read(talk, dialects["fenced"], str)[0]["tool_calls"][0]["function"]["arguments"] == '{"a": '
