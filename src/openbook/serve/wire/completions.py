"""`/v1/completions`: texts to be continued."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from openbook.serve.wire.basics import Choosing, Id, Name, Said, Trimmed, UsageOut, instead

# Texts, ids, or a list of either: JSON schema can say it, the types of Python that are checked while reading cannot.
PROMPTS = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1 << 31}, "minItems": 1},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1 << 31}, "minItems": 1},
            "minItems": 1,
        },
    ]
}

Ids = Annotated[list[Id], Meta(min_length=1)]
Prompts = Annotated[str | Annotated[list[str | Id | Ids], Meta(min_length=1)], instead(PROMPTS)]


class CompletionRequest(Choosing, kw_only=True):
    """Prompts to be continued."""

    model: Name
    prompt: Prompts
    """A text, a list of texts, ids, or a list of lists of ids."""
    echo: bool | None = None
    """The prompt comes back before its continuation, with its log-probabilities where those are asked for."""
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    """Must be `n`: choices are not ranked."""


class TextLogprobs(Said):
    """Tokens of a choice, each with its place in the text and the likeliest alternatives."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Trimmed):
    """A continuation."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: TextLogprobs | None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class CompletionReply(Trimmed):
    """All continuations, or, in a stream, what came of them."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    object: str = msgspec.field(default_factory=lambda: "text_completion")
    usage: UsageOut | None = None
