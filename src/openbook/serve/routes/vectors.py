"""`/v1/embeddings`."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from functools import partial

from openbook.chat import Embed, Tokenize, Usage
from openbook.errors import InputError
from openbook.serve import saying
from openbook.serve.route import Call, Reply, Route
from openbook.serve.routes.completions import Prompt, prompts_of
from openbook.serve.served import Embedding, Served
from openbook.serve.wire.basics import UsageOut
from openbook.serve.wire.vectors import EmbeddingReply, EmbeddingRequest, Vector

TOGETHER = 2048  # texts of one request, as the API has it


async def embed(call: Call, asked: EmbeddingRequest) -> Reply:
    """Turns texts into vectors."""
    served = call.server.models.find(asked.model)
    call.model = served.name
    prompts = prompts_of(asked.input)
    if len(prompts) > TOGETHER:
        raise InputError(f"`input` has {len(prompts)} texts: at most {TOGETHER} are read in one request. Send several.")
    vectors, usage = await embedded(call, served, prompts)
    vectors = [_cut(vector, asked.dimensions) for vector in vectors]
    packed = asked.encoding_format == "base64"
    return EmbeddingReply(
        data=[Vector(index=place, embedding=_packed(one) if packed else one) for place, one in enumerate(vectors)],
        model=asked.model,
        usage=usage,
    )


async def embedded(call: Call, served: Served, prompts: Sequence[Prompt]) -> tuple[list[list[float]], UsageOut]:
    """Vectors, and the tokens that were read for them, with what stands around a text.

    Who reads ids is given ids; who does not is given texts, which are counted as well as it can count.
    """
    endpoint = served.require(Embed)
    if isinstance(endpoint, Embedding):
        rows = await call.aside(partial(endpoint.rows, prompts))
        return await endpoint.embed(rows), usage_of(call, sum(len(row.ids) for row in rows))
    texts = [one if isinstance(one, str) else await served.require(Tokenize).detokenize(one) for one in prompts]
    count = 0
    if isinstance(endpoint, Tokenize):
        for text in texts:
            count += len(await endpoint.tokenize(text))
    return await endpoint.embed(texts), usage_of(call, count)


def usage_of(call: Call, tokens: int) -> UsageOut:
    """Of a request that only reads."""
    usage = Usage(prompt_tokens=tokens)
    call.server.metrics.used(call, usage)
    return saying.usage_of(usage, call.server.settings.cached_price)


def _cut(vector: list[float], dimensions: int | None) -> list[float]:
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise InputError(f"`dimensions` must be at most {len(vector)}, what this model has: got {dimensions}.")
    part = vector[:dimensions]
    length = math.sqrt(sum(x * x for x in part)) or 1.0
    return [x / length for x in part]


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


ROUTES = (
    Route(
        method="POST",
        path="/v1/embeddings",
        handler=embed,
        request=EmbeddingRequest,
        reply=EmbeddingReply,
        summary="Turn texts into vectors",
        works=True,
        subject="input",
    ),
)
