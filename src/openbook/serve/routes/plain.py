"""Models, health, metrics, the OpenAPI page, and what is at work."""

from __future__ import annotations

import time
from functools import partial

import msgspec
from starlette.responses import Response

from openbook.chat import Tokenize
from openbook.serve import asking, saying
from openbook.serve.errors import Rejected
from openbook.serve.openapi import document
from openbook.serve.route import Call, Reply, Route
from openbook.serve.served import Conversing
from openbook.serve.wire.plain import Board, Health, ModelList, ModelOut, RunningOut, Stopped
from openbook.serve.wire.vectors import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def models(call: Call, _: None) -> Reply:
    """Every name that the caller may use."""
    mine = [served for name, served in call.server.models.all.items() if call.caller.may(name)]
    return ModelList(data=[saying.model_of(served) for served in mine])


async def model(call: Call, _: None) -> Reply:
    """One name."""
    return saying.model_of(call.server.models.find(call.path["model"]))


async def live(_: Call, __: None) -> Reply:
    """The process answers."""
    return Health(status="live")


async def ready(call: Call, _: None) -> Reply:
    """It takes work: its models are loaded, and it is not stopping."""
    why = call.server.unready
    if why is not None:
        raise Rejected(503, why, code="unavailable")
    return Health(status="ready")


async def metrics(call: Call, _: None) -> Reply:
    """For Prometheus."""
    return Response(call.server.metrics.page(), media_type=PROMETHEUS)


async def openapi(call: Call, _: None) -> Reply:
    """What can be asked here, and how."""
    page = document(call.server.routes, keys=call.server.settings.api_keys is not None)
    return Response(msgspec.json.encode(page), media_type="application/json")


async def board(call: Call, _: None) -> Reply:
    """What is at work: the caller's own, or for an admin everybody's."""
    now = time.monotonic()
    mine = [one for one in call.server.board.by_id.values() if call.caller.admin or one.caller == call.caller.name]
    return Board(
        data=[
            RunningOut(
                id=one.id, path=one.path, model=one.model, caller=one.caller,
                seconds=round(now - one.began, 3), tokens=one.tokens, chunks=one.chunks,
            )
            for one in mine
        ]
    )  # fmt: skip


async def cancel(call: Call, _: None) -> Reply:
    """Stops a request by its id."""
    running = call.server.board.by_id.get(call.path["id"])
    if running is None or not (call.caller.admin or running.caller == call.caller.name):
        raise Rejected(404, f"No request {call.path['id']!r:.140} is at work.", code="request_not_found")
    running.stop("cancelled")
    return Stopped(id=running.id, stopped=True)


async def tokenize(call: Call, asked: TokenizeRequest) -> Reply:
    """The ids of a text or a conversation."""
    served = call.server.models.find(asked.model)
    call.model = served.name
    if (asked.prompt is None) == (asked.messages is None):
        raise Rejected(400, "Give `prompt` (a text) or `messages` (a conversation), one of the two.", param="prompt")
    if asked.messages is not None:
        said = [asking.message_of(message) for message in asked.messages]
        ids = await call.aside(partial(served.require(Conversing).prompt_of, said))
    elif asked.add_special_tokens:
        ids = await call.aside(partial(served.require(Conversing).prompt_of, asked.prompt or ""))
    else:
        ids = await served.require(Tokenize).tokenize(asked.prompt or "")
    return TokenizeReply(tokens=ids, count=len(ids), max_model_len=served.context)


async def detokenize(call: Call, asked: DetokenizeRequest) -> Reply:
    """The text of ids."""
    served = call.server.models.find(asked.model)
    call.model = served.name
    return DetokenizeReply(prompt=await served.require(Tokenize).detokenize(asked.tokens))


ROUTES = (
    Route(method="GET", path="/v1/models", handler=models, reply=ModelList, summary="What is served"),
    Route(method="GET", path="/v1/models/{model}", handler=model, reply=ModelOut, summary="One model"),
    Route(method="GET", path="/health/live", handler=live, reply=Health, access="health", summary="The process lives"),
    Route(method="GET", path="/health/ready", handler=ready, reply=Health, access="health", summary="It takes work"),
    Route(method="GET", path="/metrics", handler=metrics, summary="For Prometheus", media="text/plain", access="admin"),
    Route(method="GET", path="/openapi.json", handler=openapi, summary="This page"),
    Route(method="GET", path="/v1/requests", handler=board, reply=Board, summary="What is at work"),
    Route(method="POST", path="/v1/requests/{id}/cancel", handler=cancel, reply=Stopped, summary="Stop a request"),
    Route(
        method="POST", path="/tokenize", handler=tokenize, request=TokenizeRequest, reply=TokenizeReply,
        subject="messages", summary="Ids of a text or a conversation",
    ),
    Route(
        method="POST", path="/detokenize", handler=detokenize, request=DetokenizeRequest, reply=DetokenizeReply,
        subject="tokens", summary="Text of ids",
    ),
)  # fmt: skip
