"""The OpenAPI page, made of the routes: what is checked is what is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from openbook import __version__
from openbook.serve.route import Route
from openbook.serve.wire.basics import ErrorReply

PLACE = re.compile(r"\{(\w+)\}")
REF = "#/components/schemas/{name}"


# What a route may reply beside its success, and which of them may.
ERRORS: tuple[tuple[int, str, Callable[[Route], bool]], ...] = (
    (400, "Something of the request cannot be honoured: `param` names it", lambda route: True),
    (401, "No key, or none that is known", lambda route: True),
    (403, "Not for this key, or not for this page's origin", lambda route: True),
    (404, "There is no such model, or no such request", lambda route: route.request is not None or "{" in route.path),
    (408, "The body did not arrive in time", lambda route: route.request is not None),
    (413, "The body has too many bytes", lambda route: route.request is not None),
    (415, "The body is not said to be application/json", lambda route: route.request is not None),
    (421, "This server does not answer to that host", lambda route: True),
    (429, "Too much at once; Retry-After says when to come again", lambda route: True),
    (499, "It was stopped: by its id, or because its reader had gone", lambda route: route.works),
    (500, "The server failed; its log says why", lambda route: True),
    (502, "An endpoint behind this server failed", lambda route: route.works),
    (503, "The server is not ready, or stops", lambda route: route.works or route.access == "health"),
    (504, "Not done in time", lambda route: route.works),
)


def document(routes: Sequence[Route], *, keys: bool = False) -> dict[str, Any]:
    """OpenAPI 3.1. `keys`: whether every route asks for one."""
    types = dict.fromkeys(
        kind for route in routes for kind in (route.request, route.reply, route.chunk, ErrorReply) if kind is not None
    )
    shown, components = msgspec.json.schema_components(list(types), ref_template=REF)
    schemas = dict(zip(types, shown, strict=True))
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Openbook", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if keys else [],
    }


def _operation(route: Route, schemas: dict[Any, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": schemas[ErrorReply]}}
    good: dict[str, Any] = {"description": "What was asked for"}
    if route.reply is not None:
        good["content"] = {"application/json": {"schema": schemas[route.reply]}}
    else:
        good["content"] = {route.media: {}}
    if route.chunk is not None:
        good["content"]["text/event-stream"] = {"schema": _events(schemas[route.chunk])}
    responses = {str(status): {"description": text, "content": error} for status, text, may in ERRORS if may(route)}
    found: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "responses": {"200": good, **responses},
    }
    if route.request is not None:
        content = {"application/json": {"schema": schemas[route.request]}}
        found["requestBody"] = {"required": True, "content": content}
    if places := PLACE.findall(route.path):
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in places
        ]
    return found


def _events(chunk: dict[str, Any]) -> dict[str, Any]:
    """Server-sent events. JSON schema sees one text; what it holds is said as an annotation."""
    return {
        "type": "string",
        "description": "Where `stream` is true. Each line `data: …` is a chunk; the last is `data: [DONE]`, or an error.",
        "contentMediaType": "text/event-stream",
        "contentSchema": chunk,
    }
