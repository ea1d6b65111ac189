"""The OpenAPI page, made of the routes: what is checked is what is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from openbook import __version__
from openbook.serve.route import Route
from openbook.serve.wire.basics import INSTEAD, ErrorReply

PLACE = re.compile(r"\{(\w+)\}")
REF = "#/components/schemas/{name}"


def _any(_: Route) -> bool:
    return True


def _reads(route: Route) -> bool:
    return route.request is not None


def _finds(route: Route) -> bool:
    return route.request is not None or PLACE.search(route.path) is not None


def _changes(route: Route) -> bool:
    return route.access == "admin"


def _works(route: Route) -> bool:
    return route.works


def _waits(route: Route) -> bool:
    return route.works or route.access == "health"


# What a route may reply beside its success, and which of them may.
ERRORS: tuple[tuple[int, str, Callable[[Route], bool]], ...] = (
    (400, "Something of the request cannot be honoured; `param` names it", _any),
    (401, "No key, or none that is known", _any),
    (403, "Not for this key, or not for pages of this origin", _any),
    (404, "There is no such model, or no such request", _finds),
    (408, "The body did not arrive in time", _reads),
    (409, "It is in use", _changes),
    (413, "The body has too many bytes", _reads),
    (415, "The body is not said to be application/json", _reads),
    (421, "This server does not answer to that host", _any),
    (429, "Too much at once; Retry-After says when to come again", _any),
    (499, "It was stopped: by its id, or because its reader had gone", _works),
    (500, "The server failed; its log says why", _any),
    (502, "An endpoint behind this server failed", _works),
    (503, "The server is not ready, or stops", _waits),
    (504, "Not done in time", _works),
)


def document(routes: Sequence[Route], *, keys: bool = False) -> dict[str, Any]:
    """OpenAPI 3.1. `keys`: whether every route asks for one."""
    types = dict.fromkeys(
        kind for route in routes for kind in (route.request, route.reply, route.chunk, ErrorReply) if kind is not None
    )
    shown, components = msgspec.json.schema_components(list(types), ref_template=REF)
    schemas = dict(zip(types, shown, strict=True))
    components = _instead(components)
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


def _instead(schema: Any) -> Any:
    """A schema with the parts that are said in other words."""
    if isinstance(schema, dict):
        if INSTEAD in schema:
            return schema[INSTEAD]
        return {key: _instead(value) for key, value in schema.items()}
    return [_instead(value) for value in schema] if isinstance(schema, list) else schema


def _operation(route: Route, schemas: dict[Any, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": schemas[ErrorReply]}}
    good: dict[str, Any] = {"description": "What was asked for"}
    if route.reply is not None:
        good["content"] = {"application/json": {"schema": schemas[route.reply]}}
    else:
        good["content"] = {route.media: {}}
    if route.chunk is not None:
        good["content"]["text/event-stream"] = {"schema": _events(schemas[route.chunk], schemas[ErrorReply])}
    responses = {str(status): {"description": text, "content": error} for status, text, may in ERRORS if may(route)}
    found: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "responses": {"200": good, **responses},
    }
    if route.request is not None:
        content = {"application/json": {"schema": schemas[route.request]}}
        found["requestBody"] = {"required": True, "content": content}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in PLACE.findall(route.path)
    ]
    if route.query is not None:
        fields = msgspec.json.schema(route.query)["$defs"][route.query.__name__]["properties"]
        parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]
    if parameters:
        found["parameters"] = parameters
    return found


def _events(chunk: dict[str, Any], error: dict[str, Any]) -> dict[str, Any]:
    """A server-sent event, as OpenAPI 3.2 describes each of a stream."""
    said = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": [chunk, error]}}
    return {"type": "object", "properties": {"data": {"anyOf": [{"const": "[DONE]"}, said]}}, "required": ["data"]}
