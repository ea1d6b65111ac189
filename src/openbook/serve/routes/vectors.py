"""`/v1/embeddings`."""

from __future__ import annotations

import base64
import math
import struct

from openbook.chat import Embed, Tokenize, Usage
from openbook.errors import InputError
from openbook.serve import saying
from openbook.serve.route import Call, Reply, Route
from openbook.serve.routes.completions import prompts_of
from openbook.serve.wire.vectors import EmbeddingReply, EmbeddingRequest, Vector


async def embed(call: Call, asked: EmbeddingRequest) -> Reply:
    """Turns texts into vectors."""
    served = call.server.models.find(asked.model)
    call.model = served.name
    endpoint = served.require(Embed)
    prompts = prompts_of(asked.input)
    texts = [one if isinstance(one, str) else await served.require(Tokenize).detokenize(one) for one in prompts]
    vectors = [_cut(vector, asked.dimensions) for vector in await endpoint.embed(texts)]
    count = 0
    for text in texts:
        count += len(await served.require(Tokenize).tokenize(text))
    usage = Usage(prompt_tokens=count)
    call.server.metrics.used(call, usage)
    packed = asked.encoding_format == "base64"
    return EmbeddingReply(
        data=[Vector(index=place, embedding=_packed(one) if packed else one) for place, one in enumerate(vectors)],
        model=asked.model,
        usage=saying.usage_of(usage, call.server.settings.cached_price),
    )


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
    ),
)
