"""`/v1/embeddings`, `/v1/rerank`, `/v1/score`, `/v1/moderations`: texts that are read, not answered."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from openbook.serve.wire.basics import Asked, Count, Id, Name, Said, UsageOut
from openbook.serve.wire.chat import MessageIn
from openbook.serve.wire.completions import Prompts

Text = Annotated[str, Meta(min_length=1)]
Texts = Annotated[list[Text], Meta(min_length=1, max_length=2048)]


class EmbeddingRequest(Asked):
    """Texts, or ids, to be turned into vectors."""

    model: Name
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    """Only the first so many numbers, brought to length 1 again."""
    user: str | None = None


class Vector(Said):
    """The vector of a text, as numbers or as base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingReply(Said):
    """All vectors."""

    data: list[Vector]
    model: str
    usage: UsageOut
    object: str = "list"


class RerankRequest(Asked):
    """Documents to be put in the order of how well they answer a query."""

    model: Name
    query: Text
    documents: Texts
    top_n: Count | None = None
    return_documents: bool | None = None
    user: str | None = None


class Document(Said):
    """A document's text."""

    text: str


class Ranked(Said):
    """A document's place in the request and its score."""

    index: int
    relevance_score: float
    document: Document | None = None


class RerankReply(Said):
    """Documents, the best first. `by`: what scored them, a cross-encoder or the angle between embeddings."""

    id: str
    by: str
    model: str
    results: list[Ranked]
    usage: UsageOut


class ScoreRequest(Asked):
    """Pairs of texts to be scored: one with one, one with many, or as many as many."""

    model: Name
    text_1: Text | Texts
    text_2: Text | Texts
    user: str | None = None


class ScoreOut(Said):
    """The score of a pair."""

    index: int
    score: float
    object: str = "score"


class ScoreReply(Said):
    """All scores. `by`: where they come from, as in reranking."""

    id: str
    by: str
    model: str
    data: list[ScoreOut]
    usage: UsageOut
    object: str = "list"


class ModerationRequest(Asked):
    """Texts to be classified."""

    input: Text | Texts
    model: Name | None = None
    """Not needed where one classifier (with two labels or more) is served."""


class Verdict(Said):
    """The classes of a text. Those that are likelier than not are true; `flagged`: one of them is not called safe."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]


class ModerationReply(Said):
    """All verdicts."""

    id: str
    model: str
    results: list[Verdict]


class TokenizeRequest(Asked):
    """A text, or a conversation, to be shown as ids."""

    model: Name
    prompt: str | None = None
    messages: Annotated[list[MessageIn], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    """Of a text: with what begins and ends a prompt (the default is without)."""


class TokenizeReply(Said):
    """Ids."""

    tokens: list[int]
    count: int
    max_model_len: int | None = None


class DetokenizeRequest(Asked):
    """Ids to be shown as text."""

    model: Name
    tokens: list[Id]


class DetokenizeReply(Said):
    """Text."""

    prompt: str
