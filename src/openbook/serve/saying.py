"""From the values of the waist to the fields of replies, the same for whole answers and for chunks."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from openbook.chat import Answer, Delta, Logprob, ToolCall, ToolCallPart, Usage
from openbook.serve.served import Served
from openbook.serve.wire.basics import CompletionDetails, PromptDetails, UsageOut
from openbook.serve.wire.chat import (
    CalledOut,
    ChoiceOut,
    ChunkChoice,
    DeltaOut,
    LogprobOut,
    LogprobsOut,
    LogprobTop,
    MessageOut,
    ToolCallDelta,
    ToolCallOut,
)
from openbook.serve.wire.completions import TextLogprobs
from openbook.serve.wire.plain import ModelOut


def usage_of(usage: Usage, cached_price: float) -> UsageOut:
    """Tokens, and what they cost: a cached one `cached_price` of another."""
    return UsageOut(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        billed_tokens=round(usage.total_tokens - (1.0 - cached_price) * usage.cached_tokens, 3),
        prompt_tokens_details=PromptDetails(cached_tokens=usage.cached_tokens),
        completion_tokens_details=CompletionDetails(reasoning_tokens=usage.reasoning_tokens),
    )


def logprobs_of(found: Sequence[Logprob]) -> LogprobsOut:
    """Of the tokens of a chat answer."""
    return LogprobsOut(
        content=[
            LogprobOut(
                token=one.token,
                logprob=one.logprob,
                bytes=list(one.bytes),
                top_logprobs=[_top(other) for other in one.top],
            )
            for one in found
        ]
    )


def _top(one: Logprob) -> LogprobTop:
    return LogprobTop(token=one.token, logprob=one.logprob, bytes=list(one.bytes))


def heard_of(heard: Sequence[Logprob | None]) -> list[dict[str, Any] | None] | None:
    """Of the tokens of a prompt; nothing precedes the first."""
    if not heard:
        return None
    return [
        None
        if one is None
        else {
            "token": one.token,
            "logprob": one.logprob,
            "bytes": list(one.bytes),
            "top_logprobs": [{"token": top.token, "logprob": top.logprob, "bytes": list(top.bytes)} for top in one.top],
        }
        for one in heard
    ]


def choice_of(index: int, answer: Answer, logprobs: bool) -> ChoiceOut:
    """A whole answer."""
    message = MessageOut(
        content=None if answer.tool_calls and not answer.text else answer.text,
        reasoning_content=answer.reasoning or None,
        tool_calls=[_call(call) for call in answer.tool_calls] or None,
    )
    said = logprobs_of(answer.logprobs) if logprobs else None
    return ChoiceOut(index=index, message=message, finish_reason=answer.finish, logprobs=said)


def _call(call: ToolCall) -> ToolCallOut:
    return ToolCallOut(id=call.id, function=CalledOut(name=call.name, arguments=call.arguments))


def chunk_of(delta: Delta, first: bool, logprobs: bool) -> ChunkChoice:
    """What came of an answer; the first chunk of each names the role."""
    calls = [_part(part) for part in delta.tool_calls] or None
    content: str | None = delta.text or None
    if first and not calls and not delta.reasoning:
        content = delta.text
    out = DeltaOut(
        role="assistant" if first else None,
        content=content,
        reasoning_content=delta.reasoning or None,
        tool_calls=calls,
    )
    said = logprobs_of(delta.logprobs) if logprobs and delta.logprobs else None
    return ChunkChoice(index=delta.choice, delta=out, finish_reason=delta.finish, logprobs=said)


def _part(part: ToolCallPart) -> ToolCallDelta:
    function = CalledOut(name=part.name or None, arguments=part.arguments)
    return ToolCallDelta(index=part.index, id=part.id or None, type="function" if part.id else None, function=function)


def _by_text(top: Sequence[Logprob]) -> dict[str, float]:
    """Alternatives, the likeliest first. Of those that read the same (parts of characters do) the likeliest counts."""
    found: dict[str, float] = {}
    for one in top:
        found.setdefault(_name(one), one.logprob)
    return found


class Offsets:
    """Log-probabilities of a completion with the place of each token in its text, counted in characters."""

    def __init__(self, tops: bool) -> None:
        self._at = 0
        self._tops = tops
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, found: Sequence[Logprob | None], first: str = "") -> TextLogprobs:
        """The next tokens; a first one that has no log-probability is `first`."""
        said = TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[] if self._tops else None, text_offset=[])
        for one in found:
            said.tokens.append(first if one is None else _name(one))
            said.token_logprobs.append(None if one is None else one.logprob)
            said.text_offset.append(self._at)
            self._at += len(self._text.decode(first.encode() if one is None else written(one)))
            if said.top_logprobs is not None:
                said.top_logprobs.append(None if one is None else _by_text(one.top))
        return said


def written(one: Logprob) -> bytes:
    """What the text has of a token."""
    return b"" if one.silent else one.bytes or one.token.encode()


def _name(one: Logprob) -> str:
    """A token as a name, of which no two share one: its text, or its bytes, as the API has them, where it has none."""
    try:
        one.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.bytes)
    return one.token


def model_of(served: Served) -> ModelOut:
    """A model, or an adapter, in the list of them."""
    return ModelOut(
        id=served.name,
        created=served.created,
        parent=served.parent,
        max_model_len=served.context,
        capabilities=[can.lower() for can in served.can],
    )
