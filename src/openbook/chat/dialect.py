"""How a chat template writes calls of tools and reasoning, read off the template itself by rendering conversations
whose words are known: never from a model's name.

    start · opens · {"name": N, "arguments": A} · closes · separator · opens · … · closes · end
    start · opens · N · between · A                      · closes · …        (or: N · between · id · behind · A)

What stands around the words of one call and of two is split where the two agree. The same probes say in which form the
template takes arguments (transformers hands in an object; some templates paste text), what it takes for no content, and
whether it asks for ids of a certain length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from openbook.chat.messages import REASONING, Message
from openbook.errors import InputError, Refusal, TokenizerError
from openbook.text.template import NULL

Render = Callable[..., str]  # render(messages, tools=…, add_generation_prompt=…)

USER, SAID, THOUGHT = "\ue010", "\ue011", "\ue012"  # no template writes these characters
ID = "\ue013"  # stands for the id of a call in what was read
NAMES = ("probe_alpha", "probe_omega")
ARGUMENTS = {"probe_key": "probe value"}
LONGEST_ID = 40

_UNIT = re.compile(r"</?[^<>\s]+>|\[/?[A-Z_]+\]|\s+|\w+|.", re.DOTALL)
_HEAD = re.compile(r'\{\s*(?:"(?P<id>\w+)"\s*:\s*"' + ID + r'"\s*,\s*)?"(?P<name>\w+)"\s*:\s*"$')
_MIDDLE = re.compile(r'"\s*,\s*"(?P<arguments>\w+)"\s*:\s*')
_TAIL = re.compile(r'(?:\s*,\s*"(?P<id>\w+)"\s*:\s*"' + ID + r'")?\s*\}')
_CLOSING_TAG = re.compile(r"</\w[\w-]*>|\[/[A-Z_]+\]|<[|｜]/\w[\w-]*[|｜]>")


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one template writes calls; see the top of this file. The marks are as written, white space included.

    behind      not empty: an id stands between `between` and this mark
    keys        of the name and the arguments in a JSON object; None: name, `between`, arguments
    id_key      the key of an id in such an object
    id_length   ids must be so many letters and digits; None: any will do
    many        whether the template writes several calls
    as_text     whether it takes arguments as JSON text rather than as an object
    blank       what it takes for no content
    beside      whether it writes content beside calls; if not, content gives way, for results refer to the calls
    """

    start: str = ""
    opens: str = ""
    between: str = ""
    behind: str = ""
    closes: str = ""
    separator: str = ""
    end: str = ""
    keys: tuple[str, str] | None = None
    id_key: str | None = None
    id_length: int | None = None
    many: bool = True
    as_text: bool = False
    blank: str | None = None
    beside: bool = True

    @property
    def bare(self) -> bool:
        """Whether a call is a JSON object and nothing else, so that only its keys and its name tell it from text."""
        return not (self.start + self.opens).strip()


@dataclass(frozen=True, kw_only=True)
class Reasoning:
    """The marks around what the model thinks before it speaks, without the white space around them."""

    opening: str
    closing: str


@dataclass(frozen=True)
class _Form:
    """One way to hand a call to a template."""

    id_length: int | None
    as_text: bool
    blank: str | None

    def call(self, number: int) -> dict[str, Any]:
        """Call number 0 or 1, as templates read it."""
        arguments = json.dumps(ARGUMENTS) if self.as_text else ARGUMENTS
        function = {"name": NAMES[number], "arguments": arguments}
        return {"id": self.id(number), "type": "function", "function": function}

    def id(self, number: int) -> str:
        """Of call number 0 or 1."""
        return f"call_probe{number}" if self.id_length is None else f"{number}Z".ljust(self.id_length, "q")


class Probe:
    """Conversations in one template.

    render    the template; InputError and TokenizerError are what it refuses
    source    its text
    specials  names of special tokens, which are not cut in two
    stops     those that end a turn
    """

    def __init__(self, render: Render, source: str, specials: Collection[str], stops: Collection[str]) -> None:
        self.render = render
        self.source = source
        self.stops = stops
        names = "|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)"
        self._unit = re.compile(f"{names}|{_UNIT.pattern}", re.DOTALL)

    # -- calls --------------------------------------------------------------------------------------------------------

    def dialect(self) -> Dialect:
        """How calls are written. A Refusal where the template does not know tools, or writes what cannot be read."""
        if not self._shows_tools():
            raise Refusal("The chat template of this model does not know tools. Describe them in a message instead.")
        found = self._one()
        if found is None:
            raise Refusal("The chat template of this model shows tools but writes no calls that can be read.")
        if not self._answers_plainly():
            raise Refusal("The chat template of this model writes answers in parts that are not read here.")
        form, before, between, after = found
        many = self._two(form)
        opens, separator, closes = before, "", after
        if many is not None:
            opens = self._common_end(before, many)
            rest = many[: len(many) - len(opens)]
            closes = self._common_start(after, rest)
            separator = rest[len(closes) :]
        start, end = before[: len(before) - len(opens)], after[len(closes) :]
        dialect = _shaped(start, opens, between, closes, separator, end, form, many is not None)
        dialect = replace(dialect, beside=NAMES[0] in (self._answer(replace(form, blank=SAID), 1) or ""))
        if ID in (start + dialect.opens + dialect.between + dialect.closes + separator + end):
            raise Refusal("The chat template of this model writes ids into its calls in a way that is not known here.")
        if dialect.keys is None and dialect.bare:
            raise Refusal("The chat template of this model writes calls that nothing tells from text.")
        return dialect

    def _shows_tools(self) -> bool:
        parameters = {"type": "object", "properties": {}}
        function = {"name": NAMES[0], "description": "probe", "parameters": parameters}
        try:
            text = self.render([_user()], tools=[{"type": "function", "function": function}])
        except InputError:
            return False
        return NAMES[0] in text

    def _answers_plainly(self) -> bool:
        """Whether nothing but reasoning stands between the prompt of an answer and its text."""
        prompt = self.render([_user()], add_generation_prompt=True)
        text = self.render([_user(), {"role": "assistant", "content": SAID}], add_generation_prompt=False)
        between = text.partition(SAID)[0][_alike(prompt, text) :]
        reasoning = self.reasoning()
        for mark in (reasoning.opening, reasoning.closing) if reasoning else ():
            between = between.replace(mark, "")
        return not between.strip()

    def _one(self) -> tuple[_Form, str, str, str] | None:
        """A form in which the template takes a call, and what it writes around name and arguments."""
        for length in (None, *range(1, LONGEST_ID + 1)):
            answers = [(form, self._answer(form, 1)) for form in _forms(length)]
            for form, answer in answers:
                if answer is not None and (cut := _cut(answer)) is not None:
                    return form, *cut
            if any(answer is not None for _, answer in answers):
                return None  # it is not for the id that no call is written
        return None

    def _two(self, form: _Form) -> str | None:
        """What stands between the arguments of one call and the name of the next; None: there cannot be two."""
        answer = self._answer(form, 2)
        if answer is None or (first := _cut(answer)) is None or NAMES[1] not in first[2]:
            return None
        return first[2][: first[2].index(NAMES[1])]

    def _answer(self, form: _Form, calls: int) -> str | None:
        """What the template writes for an answer of so many calls, ids replaced; None: it does not take it."""
        said = {
            "role": "assistant",
            "content": NULL if form.blank is None else form.blank,
            "tool_calls": [form.call(i) for i in range(calls)],
        }
        try:
            text = self.render([_user(), said], add_generation_prompt=False)
            plain = self.render([_user(), {"role": "assistant", "content": SAID}], add_generation_prompt=False)
        except (InputError, TokenizerError):
            return None
        for number in range(calls):
            text = text.replace(form.id(number), ID)
        common = _alike(text, plain)
        text, plain = text[common:], plain[common:]
        text = text[: len(text) - _alike(text[::-1], plain[::-1])]
        return self._without_stop(text.lstrip())

    def _without_stop(self, text: str) -> str:
        bare = text.rstrip()
        stop = next((stop for stop in self.stops if stop and bare.endswith(stop)), None)
        return text if stop is None else bare.removesuffix(stop)

    def _common_start(self, one: str, other: str) -> str:
        """The units at the start of both."""
        size = 0
        for a, b in zip(self._unit.findall(one), self._unit.findall(other), strict=False):
            if a != b:
                break
            size += len(a)
        return one[:size]

    def _common_end(self, one: str, other: str) -> str:
        """The units at the end of both."""
        size = 0
        for a, b in zip(self._unit.findall(one)[::-1], self._unit.findall(other)[::-1], strict=False):
            if a != b:
                break
            size += len(a)
        return one[len(one) - size :]

    # -- reasoning ----------------------------------------------------------------------------------------------------

    def reasoning(self) -> Reasoning | None:
        """The marks of reasoning, or None: what stands around it where it is written; else a closing mark in the
        template's source, before which the template drops what an answer of the past says."""
        try:
            thoughtful = {"role": "assistant", "content": SAID, REASONING: THOUGHT}
            text = self.render([_user(), thoughtful], add_generation_prompt=False)
            before, thought, after = text.partition(THOUGHT)
            units = self._unit.findall(before.rstrip())
            closing = after.partition(SAID)[0].strip()
            if thought and SAID in after and units and self._is_tag(units[-1]) and self._is_tag(closing):
                return Reasoning(opening=units[-1], closing=closing)
            prompt = self.render([_user()], add_generation_prompt=True).rstrip()
        except (InputError, TokenizerError):
            return None
        for closing in dict.fromkeys(_CLOSING_TAG.findall(self.source)):
            opening = closing.replace("/", "", 1)
            if prompt.endswith(opening) or self._drops(closing):
                return Reasoning(opening=opening, closing=closing)
        return None

    def _drops(self, closing: str) -> bool:
        said = {"role": "assistant", "content": f"{THOUGHT}{closing}{SAID}"}
        try:
            text = self.render([_user(), said, _user()], add_generation_prompt=False)
        except (InputError, TokenizerError):
            return False
        return SAID in text and THOUGHT not in text

    def _is_tag(self, text: str) -> bool:
        """One unit that is more than a word."""
        return len(text) > 1 and not text.isalnum() and self._unit.fullmatch(text) is not None


def _alike(one: str, other: str) -> int:
    """How many characters at the start of both are the same."""
    both = min(len(one), len(other))
    return next((at for at in range(both) if one[at] != other[at]), both)


def _user() -> dict[str, Any]:
    return {"role": "user", "content": USER}


def _forms(length: int | None) -> list[_Form]:
    return [_Form(length, as_text, blank) for blank in (None, "") for as_text in (False, True)]


def _cut(answer: str) -> tuple[str, str, str] | None:
    """What stands before the first name, between it and its arguments, and after them; None: they are not there."""
    before, name, rest = answer.partition(NAMES[0])
    if not name:
        return None
    at = rest.find("{")
    try:
        value, end = json.JSONDecoder().raw_decode(rest, at) if at >= 0 else (None, 0)
    except json.JSONDecodeError:
        return None
    if value != ARGUMENTS:
        return None
    return before, rest[:at], rest[end:]


def _shaped(
    start: str, opens: str, between: str, closes: str, separator: str, end: str, form: _Form, many: bool
) -> Dialect:
    """The dialect of what was read; where calls are JSON objects, their braces and keys are no part of the marks."""
    keys = id_key = None
    behind = ""
    head, middle, tail = _HEAD.search(opens), _MIDDLE.fullmatch(between), _TAIL.match(closes)
    if head and middle and tail:
        keys, id_key = (head["name"], middle["arguments"]), head["id"] or tail["id"]
        opens, between, closes = opens[: head.start()], "", closes[tail.end() :]
    elif between.count(ID) == 1 and not between.strip().startswith(ID) and not between.strip().endswith(ID):
        between, _, behind = between.partition(ID)
    return Dialect(
        start=start,
        opens=opens,
        between=between,
        behind=behind,
        closes=closes,
        separator=separator,
        end=end,
        keys=keys,
        id_key=id_key,
        id_length=form.id_length,
        many=many,
        as_text=form.as_text,
        blank=form.blank,
    )


# -- conversations of the past ----------------------------------------------------------------------------------------


def as_read(messages: Sequence[Message], dialect: Dialect, fitted: Callable[[str], str]) -> list[dict[str, Any]]:
    """Messages in the form that the template takes; `fitted` gives an id the shape that it asks for."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    found: list[dict[str, Any]] = []
    for message in messages:
        value = message.as_dict()
        if message.tool_calls:
            content = (message.content if dialect.beside else None) or dialect.blank
            value["content"] = NULL if content is None else content
            for call in value["tool_calls"]:
                call["id"] = fitted(call["id"])
                call["function"]["arguments"] = _arguments(call["function"], dialect.as_text)
        if message.tool_call_id is not None:
            value["tool_call_id"] = fitted(message.tool_call_id)
            if message.role == "tool" and message.tool_call_id in names:
                value.setdefault("name", names[message.tool_call_id])
        found.append(value)
    return found


def _arguments(function: Mapping[str, Any], as_text: bool) -> Any:
    text = function["arguments"] or "{}"
    if as_text:
        return text
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"The arguments of a call of {function['name']!r} in the messages must be a JSON object, as the chat "
            f"template of this model reads them: got {text!r:.100}."
        )
    return value
