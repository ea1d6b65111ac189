"""What requests and replies share: how they are read and written, and the fields of sampling.

Every number has its bounds here, so that the OpenAPI page says what the code checks. Numbers that need the model
(ids below its vocabulary, lengths below its context) are checked behind the waist.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

# Accepted and without effect, as the API's own documentation lets a server do: they describe the caller.
NO_OPS = ("user", "metadata", "service_tier", "safety_identifier", "store", "prompt_cache_key")

Count = Annotated[int, Meta(ge=1, le=1 << 31)]
Natural = Annotated[int, Meta(ge=0, le=1 << 31)]
Id = Annotated[int, Meta(ge=0, le=1 << 31)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
Stops = Stop | Annotated[list[Stop], Meta(max_length=16)]
Buffer = Literal["token", "word", "sentence"]


INSTEAD = "x-instead"


def instead(schema: dict[str, Any]) -> Meta:
    """What the OpenAPI page says of a type that Python's types cannot say whole."""
    return Meta(extra_json_schema={INSTEAD: schema})


class Asked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A part of a request: what it does not know it refuses."""


class Said(msgspec.Struct, kw_only=True):
    """A part of a reply."""


class Trimmed(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A part of a reply that is written only as far as it says something."""


class Event(Trimmed):
    """A chunk that is sent under its name: an `event:` line with `type`."""

    type: str
    sequence_number: int


class StreamOptions(Asked):
    """What a stream says beside its deltas."""

    include_usage: bool = False
    """A last chunk with the usage of the whole."""
    include_obfuscation: bool | None = None
    """No effect: chunks are never padded."""


class JsonSchema(Asked):
    """A named schema."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] = "answer"
    schema: dict[str, Any] | bool = {}
    description: str | None = None
    strict: bool | None = None
    """Schemas are always kept to."""


class FormatText(Asked, tag_field="type", tag="text"):
    """Any text."""


class FormatObject(Asked, tag_field="type", tag="json_object"):
    """A JSON object."""


class FormatSchema(Asked, tag_field="type", tag="json_schema"):
    """A document of a schema."""

    json_schema: JsonSchema


class Structured(Asked):
    """What an answer must be, one of these."""

    json: dict[str, Any] | None = None
    regex: Annotated[str, Meta(min_length=1)] | None = None
    choice: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)] | None = None
    grammar: Annotated[str, Meta(min_length=1)] | None = None
    """Lark."""


Format = FormatText | FormatObject | FormatSchema


class Choosing(Asked):
    """How tokens are chosen, and the terms of a request: what all generating routes take."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Natural | None = None
    min_tokens: Natural | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 31)] | None = None
    """0 and -1: off."""
    min_p: Share | None = None
    typical_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10.0)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    """Id, as text, to what is added to its logit; -100 forbids it."""
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: Stops | None = None
    stop_token_ids: list[Id] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: Format | None = None
    structured_outputs: Structured | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] | None = None
    """Higher comes first, within what the key may ask for."""
    timeout: Annotated[float, Meta(gt=0.0, le=86400.0)] | None = None
    """Seconds after which the request is ended with status 504."""
    buffer: Buffer | None = None
    """What a chunk of a stream holds: what each token brings, whole words, or whole sentences."""
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: bool | None = None


class PromptDetails(Said):
    """Of the tokens that were read."""

    cached_tokens: int = 0


class CompletionDetails(Said):
    """Of the tokens that were written."""

    reasoning_tokens: int = 0


class UsageOut(Said):
    """Tokens read and written. `billed_tokens`: with cached tokens at the server's price for them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    billed_tokens: float = 0.0
    prompt_tokens_details: PromptDetails = msgspec.field(default_factory=PromptDetails)
    completion_tokens_details: CompletionDetails = msgspec.field(default_factory=CompletionDetails)


class ErrorOut(Said):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(Said):
    """The body of every reply that is no success."""

    error: ErrorOut
