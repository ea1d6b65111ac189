"""The OpenAPI page, made of the routes: what is checked is what is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from openbook import __version__
from openbook.serve.route import Route
from openbook.serve.wire.basics import INSTEAD, ErrorReply

PLACE = re.compile(r"\{(\w+)\}")
REF = "#/components/schemas/{name}"


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """OpenAPI 3.1."""
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
        "security": [{"key": []}, {}],
    }


def _instead(schema: Any) -> Any:
    """A schema with the parts that are said in other words."""
    if isinstance(schema, dict):
        if INSTEAD in schema:
            return schema[INSTEAD]
        return {key: _instead(value) for key, value in schema.items()}
    return [_instead(value) for value in schema] if isinstance(schema, list) else schema


def _operation(route: Route, schemas: dict[Any, Any]) -> dict[str, Any]:
    error = {"description": "An error", "content": {"application/json": {"schema": schemas[ErrorReply]}}}
    good: dict[str, Any] = {"description": "What was asked for"}
    if route.reply is not None:
        good["content"] = {"application/json": {"schema": schemas[route.reply]}}
    else:
        good["content"] = {route.media: {}}
    if route.chunk is not None:
        good["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    found: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "responses": {"200": good, "default": error},
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
