"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`: adapters come and go while the server runs."""

from __future__ import annotations

import asyncio

from openbook.errors import InputError, OpenbookError, Refusal
from openbook.serve import saying
from openbook.serve.errors import Rejected
from openbook.serve.route import Call, Reply, Route
from openbook.serve.served import Adaptable, Served
from openbook.serve.wire.plain import LoadAdapter, ModelOut, Stopped, UnloadAdapter


async def load(call: Call, asked: LoadAdapter) -> Reply:
    """Loads a LoRA folder; what runs goes on undisturbed."""
    models = call.server.models
    served = _base(call, asked.model)
    assert isinstance(served.endpoint, Adaptable), "it takes adapters"
    if asked.lora_name in models.all:
        raise InputError(f"The `lora_name` {asked.lora_name!r} is taken: give another, or unload that one first.")
    try:
        await asyncio.to_thread(served.endpoint.load_adapter, asked.lora_name, asked.lora_path)
    except (OpenbookError, OSError, ValueError) as error:  # the last two: a name that no folder can have
        raise Rejected(400, f"`lora_path` cannot be served: {error}", param="lora_path") from error
    made = served.adapted(asked.lora_name)
    models.add(made)
    return saying.model_of(made)


async def unload(call: Call, asked: UnloadAdapter) -> Reply:
    """Takes an adapter away: nothing new finds it from now on. While requests use it, it stays (409)."""
    models = call.server.models
    served = models.find(asked.lora_name)
    if served.parent is None:
        raise InputError(f"The `lora_name` {asked.lora_name!r} is a model and no adapter: it stays.")
    base = models.find(served.parent).endpoint
    assert isinstance(base, Adaptable), "its adapter was loaded"
    models.remove(served.name)
    try:
        await asyncio.to_thread(base.unload_adapter, served.name)
    except Refusal as error:
        models.add(served)
        raise Rejected(409, str(error), code="adapter_in_use", param="lora_name") from error
    return Stopped(id=served.name, stopped=True)


def _base(call: Call, name: str | None) -> Served:
    """The model of that name, or the only one that takes adapters."""
    models = call.server.models
    if name is not None:
        served = models.find(name)
        if not isinstance(served.endpoint, Adaptable):
            raise Refusal(f"The `model` {name!r} takes no adapters.")
        return served
    takers = [served for served in models.all.values() if isinstance(served.endpoint, Adaptable)]
    if len(takers) != 1:
        known = ", ".join(served.name for served in takers) or "none"
        raise InputError(f"Give `model`, the one that the adapter is for. Those that take adapters: {known}.")
    return takers[0]


ROUTES = (
    Route(
        method="POST", path="/v1/load_lora_adapter", handler=load, request=LoadAdapter, reply=ModelOut, access="admin",
        summary="Serve a LoRA folder",
    ),
    Route(
        method="POST", path="/v1/unload_lora_adapter", handler=unload, request=UnloadAdapter, reply=Stopped,
        access="admin", summary="Take an adapter away",
    ),
)  # fmt: skip
