"""`/v1/rerank`, `/v1/score`, `/v1/moderations`: how texts stand to each other, and to labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from openbook.chat.rows import Pair
from openbook.errors import InputError, Refusal
from openbook.serve.route import Call, Reply, Route
from openbook.serve.routes.vectors import embedded, usage_of
from openbook.serve.served import Classify, Served
from openbook.serve.wire.basics import UsageOut
from openbook.serve.wire.vectors import (
    Document,
    ModerationReply,
    ModerationRequest,
    Ranked,
    RerankReply,
    RerankRequest,
    ScoreOut,
    ScoreReply,
    ScoreRequest,
    Verdict,
)

# What classifiers call a text that there is nothing to say against: words are compared without case, - for _ and space.
SAFE = frozenset(
    ("safe", "ok", "benign", "neutral", "clean", "normal", "none", "harmless", "non-toxic", "not-toxic", "nontoxic",
     "non-hate", "not-hate", "nothate", "nonhate")
)  # fmt: skip
CROSS, ANGLE = "cross-encoder", "embeddings"


async def rerank(call: Call, asked: RerankRequest) -> Reply:
    """Puts documents in the order of how well they answer a query, the first of equals first."""
    served = call.server.models.find(asked.model)
    call.model = served.name
    scores, by, usage = await _scores(call, served, [(asked.query, document) for document in asked.documents])
    order = sorted(range(len(scores)), key=lambda place: -scores[place])[: asked.top_n]
    return RerankReply(
        id=call.id,
        by=by,
        model=asked.model,
        results=[
            Ranked(
                index=place,
                relevance_score=scores[place],
                document=Document(text=asked.documents[place]) if asked.return_documents else None,
            )
            for place in order
        ],
        usage=usage,
    )


async def score(call: Call, asked: ScoreRequest) -> Reply:
    """Scores pairs of texts."""
    served = call.server.models.find(asked.model)
    call.model = served.name
    first = [asked.text_1] if isinstance(asked.text_1, str) else asked.text_1
    second = [asked.text_2] if isinstance(asked.text_2, str) else asked.text_2
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise InputError(
            f"`text_1` is one text, or as many as `text_2` has: got {len(first)} and {len(second)}. To score many "
            "with one, put the one into `text_1`."
        )
    scores, by, usage = await _scores(call, served, list(zip(first, second, strict=True)))
    return ScoreReply(
        id=call.id,
        by=by,
        model=asked.model,
        data=[ScoreOut(index=place, score=one) for place, one in enumerate(scores)],
        usage=usage,
    )


async def _scores(call: Call, served: Served, pairs: Sequence[Pair]) -> tuple[list[float], str, UsageOut]:
    """A number for each pair: by a head with one label where there is one, else the cosine of their embeddings."""
    endpoint = served.endpoint
    if isinstance(endpoint, Classify) and len(served.labels) == 1:
        chances, usage = await _classified(call, endpoint, pairs)
        return [one for (one,) in chances], CROSS, usage
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    vectors, usage = await embedded(call, served, texts)
    found = dict(zip(texts, vectors, strict=True))
    return [_cosine(found[one], found[other]) for one, other in pairs], ANGLE, usage


async def _classified(
    call: Call, endpoint: Classify, texts: Sequence[str | Pair]
) -> tuple[list[list[float]], UsageOut]:
    """What each label says of each text, and the tokens that were read."""
    rows = await call.aside(partial(endpoint.rows, texts))
    chances = [_activated(logits, endpoint.activation) for logits in await endpoint.classify(rows)]
    return chances, usage_of(call, sum(len(row.ids) for row in rows))


def _activated(logits: Sequence[float], by: str) -> list[float]:
    if by == "none":
        return list(logits)
    if by == "sigmoid":
        return [0.5 * (1.0 + math.tanh(0.5 * logit)) for logit in logits]  # no overflow on either side
    most = max(logits)
    parts = [math.exp(logit - most) for logit in logits]
    return [part / sum(parts) for part in parts]


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    length = math.sqrt(sum(x * x for x in one) * sum(x * x for x in other))
    return sum(x * y for x, y in zip(one, other, strict=True)) / (length or 1.0)


async def moderate(call: Call, asked: ModerationRequest) -> Reply:
    """Sorts texts into the labels of a classifier."""
    served = _classifier(call, asked.model)
    call.model = served.name
    assert isinstance(served.endpoint, Classify), "it has labels"
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    chances, _ = await _classified(call, served.endpoint, texts)
    return ModerationReply(id=call.id, model=served.name, results=[_verdict(served.labels, one) for one in chances])


def _classifier(call: Call, name: str | None) -> Served:
    """The model of that name, or the only one that sorts texts."""
    models = call.server.models
    if name is not None:
        served = models.find(name)
        if not served.labels:
            can = ", ".join(served.can) or "nothing of what can be asked"
            raise Refusal(f"The `model` {name!r} has no labels, so it cannot classify. It can: {can}.")
        return served
    sorters = [served for served in models.all.values() if len(served.labels) > 1]
    if len(sorters) != 1:
        known = ", ".join(served.name for served in sorters) or "none"
        raise InputError(f"Give `model`, the classifier to ask. Served: {known}.")
    return sorters[0]


def _verdict(labels: Sequence[str], chances: Sequence[float]) -> Verdict:
    scores = dict(zip(labels, chances, strict=True))
    true = {label: chance > 0.5 for label, chance in scores.items()}
    flagged = any(holds and not safe(label) for label, holds in true.items())
    return Verdict(flagged=flagged, categories=true, category_scores=scores)


def safe(label: str) -> bool:
    """Whether a label says that there is nothing to say."""
    return label.lower().replace("_", "-").replace(" ", "-") in SAFE


_RERANK = Route(
    method="POST",
    path="/v1/rerank",
    handler=rerank,
    request=RerankRequest,
    subject="documents",
    reply=RerankReply,
    summary="Put documents in the order of how well they answer a query",
    works=True,
)
_SCORE = Route(
    method="POST",
    path="/v1/score",
    handler=score,
    request=ScoreRequest,
    subject="text_2",
    reply=ScoreReply,
    summary="Score pairs of texts",
    works=True,
)

ROUTES = (
    _RERANK,
    replace(_RERANK, path="/rerank"),
    _SCORE,
    replace(_SCORE, path="/score"),
    Route(
        method="POST",
        path="/v1/moderations",
        handler=moderate,
        request=ModerationRequest,
        subject="input",
        reply=ModerationReply,
        summary="Sort texts into the labels of a classifier",
        works=True,
    ),
)
