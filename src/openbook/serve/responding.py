"""Deltas → the items of a response, and the events that tell of them. Whole and streamed replies are both made here.

    response.created, response.in_progress
      for each item    response.output_item.added
                         response.content_part.added, ….delta …, ….done, response.content_part.done      text, reasoning
                         response.function_call_arguments.delta …, ….done                                  a call
                       response.output_item.done
    response.completed | response.incomplete | response.failed

Text and reasoning take turns, each turn an item; calls, of which several may be written at once, end with the response.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from openbook.chat import Delta, ToolCallPart, Usage
from openbook.serve import saying
from openbook.serve.errors import Rejected
from openbook.serve.wire.chat import LogprobOut
from openbook.serve.wire.responded import (
    CallDone,
    Failure,
    Incomplete,
    ItemOut,
    MessageDone,
    ReasoningDone,
    ResponseEvent,
    ResponseOut,
    ResponseUsage,
    TextOut,
    ThoughtOut,
)

PREFIX = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}
SPOKEN = {"message": "response.output_text", "reasoning": "response.reasoning_text"}
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def new_id(prefix: str) -> str:
    """A name that nobody can guess."""
    return prefix + secrets.token_hex(16)


@dataclass(eq=False)
class _Item:
    """An item while it is written; `text` is what was said, thought, or the call's arguments."""

    kind: Literal["message", "reasoning", "function_call"]
    place: int
    id: str
    call_id: str = ""
    name: str = ""
    text: str = ""
    logprobs: list[LogprobOut] = field(default_factory=list)
    status: str = "in_progress"

    def part(self) -> TextOut | ThoughtOut:
        """Its content."""
        if self.kind == "reasoning":
            return ThoughtOut(text=self.text)
        return TextOut(text=self.text, logprobs=list(self.logprobs))

    def out(self) -> ItemOut:
        """As it stands."""
        if self.kind == "function_call":
            return CallDone(
                id=self.id, status=self.status, call_id=self.call_id, name=self.name, arguments=self.text
            )  # fmt: skip
        begun = self.text or self.status != "in_progress"
        match self.part():
            case ThoughtOut() as thought:
                return ReasoningDone(id=self.id, status=self.status, content=[thought] if begun else [])
            case TextOut() as text:
                return MessageDone(id=self.id, status=self.status, content=[text] if begun else [])


class Responding:
    """One response on its way. The events are to be sent as they are asked for."""

    def __init__(self, response: ResponseOut, logprobs: bool) -> None:
        self.response = response
        self.finish: str | None = None
        self._logprobs = logprobs
        self._held: list[LogprobOut] = []  # of tokens that have not become text yet
        self._items: list[_Item] = []
        self._spoken: _Item | None = None
        self._calls: dict[int, _Item] = {}
        self._number = -1

    def begun(self) -> Iterator[ResponseEvent]:
        """It has begun."""
        for kind in ("response.created", "response.in_progress"):
            yield ResponseEvent(type=kind, sequence_number=self._next(), response=self.response)

    def take(self, delta: Delta) -> Iterator[ResponseEvent]:
        """What a delta adds."""
        if delta.dropped:
            self.response.dropped = list(delta.dropped)
        if self._logprobs and delta.logprobs:
            self._held += saying.logprobs_of(delta.logprobs).content
        if delta.reasoning:
            yield from self._say("reasoning", delta.reasoning)
        if delta.text:
            yield from self._say("message", delta.text)
        for part in delta.tool_calls:
            yield from self._call(part)
        self.finish = delta.finish or self.finish

    def ended(self, usage: Usage, cached_price: float) -> Iterator[ResponseEvent]:
        """It is at its end: whole, or as long as it may be."""
        if not self._items:
            yield from self._open(_Item("message", 0, new_id("msg_")))
        reason = INCOMPLETE.get(self.finish or "")
        yield from self._close_spoken("incomplete" if reason and not self._calls else "completed")
        for item in self._calls.values():
            yield from self._close(item, "incomplete" if reason else "completed")
        counts = saying.usage_of(usage, cached_price)
        self.response.usage = ResponseUsage(
            input_tokens=counts.prompt_tokens,
            output_tokens=counts.completion_tokens,
            total_tokens=counts.total_tokens,
            billed_tokens=counts.billed_tokens,
            input_tokens_details=counts.prompt_tokens_details,
            output_tokens_details=counts.completion_tokens_details,
        )
        self.response.output = [item.out() for item in self._items]
        self.response.incomplete_details = Incomplete(reason=reason) if reason else None
        yield self._last("incomplete" if reason else "completed")

    def failed(self, error: Rejected) -> ResponseEvent:
        """There is no more of it."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.response.error = Failure(code=code, message=error.message)
        self.response.output = [item.out() for item in self._items]
        return self._last("failed")

    # -- items --------------------------------------------------------------------------------------------------------

    def _say(self, kind: Literal["message", "reasoning"], text: str) -> Iterator[ResponseEvent]:
        if self._spoken is None or self._spoken.kind != kind:
            yield from self._close_spoken("completed")
            yield from self._open(_Item(kind, len(self._items), new_id(PREFIX[kind])))
        item = self._spoken
        assert item is not None, "it was opened"
        item.text += text
        event = self._event(SPOKEN[kind] + ".delta", item)
        event.content_index, event.delta = 0, text
        if kind == "message":
            event.logprobs, self._held = self._held, []
            item.logprobs += event.logprobs
        yield event

    def _call(self, part: ToolCallPart) -> Iterator[ResponseEvent]:
        item = self._calls.get(part.index)
        if item is None:
            yield from self._close_spoken("completed")
            item = _Item("function_call", len(self._items), new_id("fc_"), part.id or new_id("call_"), part.name)
            self._calls[part.index] = item
            yield from self._open(item)
        if part.arguments:
            item.text += part.arguments
            event = self._event("response.function_call_arguments.delta", item)
            event.delta = part.arguments
            yield event

    def _open(self, item: _Item) -> Iterator[ResponseEvent]:
        self._items.append(item)
        yield ResponseEvent(
            type="response.output_item.added", sequence_number=self._next(), output_index=item.place, item=item.out()
        )
        if item.kind != "function_call":
            self._spoken = item
            event = self._event("response.content_part.added", item)
            event.content_index, event.part = 0, item.part()
            yield event

    def _close_spoken(self, status: str) -> Iterator[ResponseEvent]:
        item, self._spoken = self._spoken, None
        if item is None:
            return
        if item.kind == "message":
            item.logprobs += self._held
            self._held = []
        event = self._event(SPOKEN[item.kind] + ".done", item)
        event.content_index, event.text = 0, item.text
        if item.kind == "message":
            event.logprobs = item.logprobs
        yield event
        event = self._event("response.content_part.done", item)
        event.content_index, event.part = 0, item.part()
        yield event
        yield from self._close(item, status)

    def _close(self, item: _Item, status: str) -> Iterator[ResponseEvent]:
        item.status = status
        if item.kind == "function_call":
            event = self._event("response.function_call_arguments.done", item)
            event.arguments, event.name = item.text, item.name
            yield event
        yield ResponseEvent(
            type="response.output_item.done", sequence_number=self._next(), output_index=item.place, item=item.out()
        )

    def _event(self, kind: str, item: _Item) -> ResponseEvent:
        return ResponseEvent(type=kind, sequence_number=self._next(), output_index=item.place, item_id=item.id)

    def _last(self, status: str) -> ResponseEvent:
        self.response.status = status
        return ResponseEvent(type="response." + status, sequence_number=self._next(), response=self.response)

    def _next(self) -> int:
        self._number += 1
        return self._number
