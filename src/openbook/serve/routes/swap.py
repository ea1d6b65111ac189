"""`/v1/models/{model}/swap`: another folder behind a name, and no request dropped (blue-green).

The new model is loaded beside the old one. When it is ready new requests go to it; those that run are finished by the
old one, which is then closed. Where the new one cannot be loaded nothing has changed.
"""

from __future__ import annotations

import asyncio

from openbook.errors import OpenbookError
from openbook.serve import saying
from openbook.serve.collector import calm
from openbook.serve.errors import Rejected
from openbook.serve.route import Call, Reply, Route
from openbook.serve.served import Closing, Served
from openbook.serve.server import Server
from openbook.serve.wire.plain import ModelOut, SwapModel

LOOK = 0.05  # seconds between looks at who still runs


async def swap(call: Call, asked: SwapModel) -> Reply:
    """Puts another model behind a name."""
    server, name = call.server, call.path["model"]
    served = server.models.find(name)
    if server.load is None or served.parent is not None:
        why = "an adapter: load another beside it" if served.parent is not None else "served from no folder"
        raise Rejected(400, f"The model {name!r} is {why}.", code="not_supported", param="model")
    if server.swapping.locked():
        raise Rejected(409, "A model is being swapped already: ask again when that is done.", code="swapping")
    async with server.swapping:
        server.log.say("swapping", model=name, path=asked.path)
        try:
            made = await asyncio.to_thread(server.load, name, asked.path)
        except (OpenbookError, OSError, ValueError) as error:
            raise Rejected(400, f"`path` cannot be served, and {name!r} stays: {error}", param="path") from error
        lacking = _adapters(server, name) - {one.name for one in made}
        if lacking:
            await _close(next(one for one in made if one.name == name))
            raise Rejected(
                409, f"The new {name!r} would lack the adapters {', '.join(sorted(lacking))}: unload them first.",
                code="adapter_in_use", param="model",
            )  # fmt: skip
        for one in made:
            server.models.swap(one)
        server.log.say("swapped", model=name, path=asked.path)
        server.background(_retire(server, served))
    return saying.model_of(server.models.find(name))


def _adapters(server: Server, name: str) -> set[str]:
    """Names of a model's adapters."""
    return {one.name for one in server.models.all.values() if one.parent == name}


async def _retire(server: Server, served: Served) -> None:
    """Closes what was replaced, once nobody who may have found it runs any more."""
    runs = set(server.board.by_id.values())
    while not runs.isdisjoint(server.board.by_id.values()):
        await asyncio.sleep(LOOK)
    await _close(served)
    del served, runs
    calm()
    server.log.say("retired")


async def _close(served: Served) -> None:
    if isinstance(served.endpoint, Closing):
        await asyncio.to_thread(served.endpoint.close)


ROUTES = (
    Route(
        method="POST",
        path="/v1/models/{model}/swap",
        handler=swap,
        request=SwapModel,
        reply=ModelOut,
        access="admin",
        summary="Put another folder behind a name",
    ),
)
