"""What an endpoint says → deltas. As forgiving as the official client where dialects differ, never about types.

usage alone in a last chunk, or beside the last content     given out with the last delta of all
`reasoning_content`, or `reasoning`                         reasoning
parts of tool calls without an index, or all with index 0   told apart by their ids
id and name of a call repeated in each part                 given out once
whole messages where deltas were asked for                  one delta
`finish_reason` twice, or in a chunk of its own             given out once
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from openbook.chat.messages import Delta, Finish, Logprob, ToolCallPart, Usage
from openbook.errors import RemoteError

DONE = "[DONE]"
PART = re.compile(r"bytes:(?:\\x[0-9a-f]{2})+")  # the name of a token that is a part of a character
FINISHES: Mapping[str, Finish] = {
    "stop": "stop", "eos": "stop", "eos_token": "stop", "end_turn": "stop", "stop_sequence": "stop",
    "length": "length", "max_tokens": "length", "model_length": "length",
    "tool_calls": "tool_calls", "function_call": "tool_calls", "content_filter": "content_filter",
}  # fmt: skip


class EndpointError(Exception):
    """The endpoint says in its stream that it failed; `value` is what it said."""

    def __init__(self, value: Any) -> None:
        super().__init__("the endpoint failed")
        self.value = value


@dataclass
class _Calls:
    """The tool calls of one choice so far: where each part belongs, and what was said of each."""

    ids: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)  # the endpoint's index → ours

    def part(self, value: Any) -> ToolCallPart:
        """One entry of `tool_calls`."""
        if not isinstance(value, dict):
            raise broken("a tool call", value)
        function = value.get("function") or {}
        if not isinstance(function, dict):
            raise broken("a function", function)
        number, name = text_of(value.get("id")), text_of(function.get("name"))
        said = function.get("arguments")
        arguments = json.dumps(said, ensure_ascii=False) if isinstance(said, dict) else text_of(said)
        place = self._place(value.get("index"), number, name)
        number = "" if number == self.ids[place] else number
        name = "" if name == self.names[place] else name
        self.ids[place] += number
        self.names[place] += name
        return ToolCallPart(index=place, id=number, name=name, arguments=arguments)

    def _place(self, index: Any, number: str, name: str) -> int:
        if index is not None and (isinstance(index, bool) or not isinstance(index, int)):
            raise broken("the index of a tool call", index)
        if number and number in self.ids:
            return self.ids.index(number)
        place = len(self.ids) - 1 if index is None else self.places.get(index, -1)
        if place >= 0 and name and self.names[place]:  # a second name, with an id of its own or where nothing counts
            place = -1 if index is None or (number and self.ids[place]) else place
        if place < 0:
            place = len(self.ids)
            self.ids.append("")
            self.names.append("")
        if index is not None:
            self.places[index] = place
        return place


class Reply:
    """Reads the events of one answer with so many choices, and so many alternatives beside each token."""

    def __init__(self, choices: int, *, tops: int = 0) -> None:
        self.over = False  # the endpoint said that it is done
        self._tops = tops
        self._calls = [_Calls() for _ in range(choices)]
        self._open = set(range(choices))
        self._held: Delta | None = None  # the last of a choice, until it is known whether it is the last of all
        self._usage: Usage | None = None

    def take(self, data: str) -> list[Delta]:
        """What an event's data adds."""
        if data.strip() == DONE:
            self.over = True
            return self._last()
        return self.read(parsed(data)) if data.strip() else []

    def read(self, event: Any) -> list[Delta]:
        """The same for data that is parsed."""
        if not isinstance(event, dict):
            raise broken("an event", event)
        if event.get("error") or event.get("object") == "error":
            raise EndpointError(event)
        if isinstance(event.get("usage"), dict):
            self._usage = usage_of(event["usage"])
        choices = event.get("choices") or []
        if not isinstance(choices, list):
            raise broken("`choices`", choices)
        found: list[Delta] = []
        for choice in choices:
            delta = self._choice(choice)
            if delta == Delta(choice=delta.choice):
                continue
            if self._held:
                found.append(self._held)
            self._held = delta if delta.finish else None
            found.extend([] if delta.finish else [delta])
        return found

    def finish(self) -> list[Delta]:
        """What is left at the end of the stream, which may come without a word where all choices are done."""
        if self.over:
            return []
        if self._open:
            raise RemoteError("The stream broke off before the answer was done.")
        return self._last()

    def _last(self) -> list[Delta]:
        last, usage, self._held, self._usage = self._held, self._usage, None, None
        if usage is not None:
            last = replace(last or Delta(), usage=usage)
        return [] if last is None else [last]

    def _choice(self, value: Any) -> Delta:
        index = value.get("index") if isinstance(value, dict) else None
        index = 0 if index is None else index
        if not isinstance(value, dict) or not isinstance(index, int) or not 0 <= index < len(self._calls):
            raise broken("a choice", value)
        said = value.get("delta") or value.get("message") or {}
        if not isinstance(said, dict):
            raise broken("a delta", said)
        calls = said.get("tool_calls") or []
        if not isinstance(calls, list):
            raise broken("`tool_calls`", calls)
        finish = None
        if value.get("finish_reason") and index in self._open:
            finish = finish_of(value["finish_reason"])
            self._open.discard(index)
        text = text_of(value.get("text")) + text_of(said.get("content")) + text_of(said.get("refusal"))
        return Delta(
            choice=int(index),
            text=text,
            reasoning=text_of(said.get("reasoning_content") or said.get("reasoning")),
            tool_calls=tuple(map(self._calls[index].part, calls)),
            finish=finish,
            logprobs=logprobs_of(value.get("logprobs"), self._tops),
        )


# ------------------------------------------------------------------------------------------------ fields


def broken(what: str, value: Any) -> RemoteError:
    """The error of a reply that is not what the API says."""
    return RemoteError(f"The endpoint does not speak the OpenAI API: {what} is {value!r:.80}.")


def parsed(data: str | bytes) -> Any:
    """The JSON that a reply is."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise broken("a reply that should be JSON", data) from error


def text_of(value: Any) -> str:
    """A text that may be missing, or come in parts. Lone surrogates, which no text has, become U+FFFD."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(text_of(part.get("text")) for part in value if isinstance(part, dict))
    if not isinstance(value, str):
        raise broken("a text", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def finish_of(value: Any) -> Finish:
    """Why a choice ended."""
    known = FINISHES.get(value.lower()) if isinstance(value, str) else None
    if known is None:
        raise RemoteError(f"The endpoint ended its answer for a reason that is no end of an answer: {value!r:.60}.")
    return known


def usage_of(value: Mapping[str, Any]) -> Usage:
    """Tokens; what an endpoint does not count is 0."""

    def detail(of: str, name: str) -> int:
        details = value.get(of)
        return count_of(details.get(name) if isinstance(details, dict) else None)

    return Usage(
        prompt_tokens=count_of(value.get("prompt_tokens")),
        completion_tokens=count_of(value.get("completion_tokens")),
        cached_tokens=detail("prompt_tokens_details", "cached_tokens"),
        reasoning_tokens=detail("completion_tokens_details", "reasoning_tokens"),
    )


def count_of(value: Any) -> int:
    """A number of tokens; 0 where there is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


@dataclass(frozen=True)
class Told:
    """Tokens, and their log-probabilities: None where there is none, for the first of a prompt follows nothing."""

    tokens: list[str]
    found: list[Logprob | None]


def logprobs_of(value: Any, tops: int) -> tuple[Logprob, ...]:
    """Log-probabilities in either form of the API: `content` of a chat, `tokens` of a completion."""
    if not isinstance(value, dict):
        return ()
    if "tokens" in value:
        return tuple(one for one in told_of(value, tops).found if one is not None)
    content = value.get("content") or []
    if not isinstance(content, list):
        raise broken("`logprobs`", value)
    return tuple(map(_logprob, content))


def told_of(value: Mapping[str, Any], tops: int, *, cut: int = 0) -> Told:
    """The `logprobs` of a completion without the last `cut`, each with at most `tops` alternatives, best first.

    They are told as texts: of a token that is a part of a character the bytes are lost, unless its name is "bytes:…".
    """
    tokens, numbers, others = (value.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not isinstance(tokens, list) or not isinstance(numbers, list):
        raise broken("`logprobs`", value)
    others = others if isinstance(others, list) and others else [None] * len(tokens)
    if not len(tokens) == len(numbers) == len(others):
        raise broken("`logprobs`", value)
    found = [
        None if number is None else replace(_plain(token, number), top=_best(other, tops))
        for token, number, other in zip(tokens, numbers, others, strict=True)
    ]
    count = len(tokens) - cut
    return Told([text_of(token) for token in tokens[:count]], found[:count])


def _best(others: Any, tops: int) -> tuple[Logprob, ...]:
    """The API gives the token itself beside the best: it is cut off where it is not among them."""
    found = [_plain(*pair) for pair in others.items()] if isinstance(others, dict) else []
    return tuple(sorted(found, key=lambda one: -one.logprob)[:tops])


def _plain(token: Any, number: Any) -> Logprob:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise broken("a log-probability", number)
    text = text_of(token)
    raw = bytes.fromhex(text[6:].replace("\\x", "")) if PART.fullmatch(text) else text.encode()
    return Logprob(token=raw.decode(errors="replace"), bytes=raw, logprob=float(number))


def _logprob(value: Any) -> Logprob:
    if not isinstance(value, dict):
        raise broken("a log-probability", value)
    one = _plain(value.get("token"), value.get("logprob"))
    raw, top = value.get("bytes"), value.get("top_logprobs") or []
    if not isinstance(top, list):
        raise broken("`top_logprobs`", top)
    if isinstance(raw, list):
        try:
            one = replace(one, bytes=bytes(raw))
        except (TypeError, ValueError) as error:
            raise broken("the bytes of a token", raw) from error
    return replace(one, top=tuple(map(_logprob, top)))
