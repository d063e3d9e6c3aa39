"""``/docs``: one page with every route, type and error code. It loads nothing and runs nothing."""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from aiohttp import web

from agent.web.errors import Error
from agent.web.openapi import errors_of
from agent.web.routes import Route

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font-family: ui-monospace, monospace; font-size: .9em }
pre { overflow-x: auto; padding: .75rem; border: 1px solid color-mix(in srgb, currentColor 20%, transparent) }
section { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); padding-top: .5rem }
table { border-collapse: collapse } td, th { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0 }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(document: dict[str, Any], routes: Sequence[Route]) -> web.Response:
    """Return the page for a document and the routes that it was made of."""
    title = f"{document['info']['title']} {document['info']['version']}"
    html = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>The same as a document for programs: <a href=/openapi.json>/openapi.json</a></p>"
        f"<h2>Routes</h2>{_routes(document)}<h2>Types</h2>{_types(document)}"
        f"<h2>Error codes</h2>{_errors(routes)}</html>"
    )
    return web.Response(
        text=html,
        content_type="text/html",
        headers={"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"},
    )


def _routes(document: dict[str, Any]) -> str:
    return "".join(
        _route(method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    role = operation.get("x-role", "nobody in particular")
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code><td>{one['in']}<td>{_schema(one['schema'])}"
        f"<td>{escape(one.get('description', ''))}"
        for one in operation["parameters"]
    )
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        rows += f"<tr><td>body<td>{escape(media_type)}<td>{_schema(content['schema'])}<td>"
    for status, answer in operation["responses"].items():
        content = next(iter(answer.get("content", {}).items()), None)
        shown = (
            _codes(answer["description"])
            if content is None or "problem" in content[0]
            else _schema(content[1]["schema"])
        )
        rows += f"<tr><td>{status}<td>{escape(content[0] if content else '')}<td>{shown}<td>"
    text = f"<p>{escape(operation.get('description', ''))}</p>" if "description" in operation else ""
    return (
        f"<section><h3><code>{method} {escape(path)}</code></h3><p>{escape(operation['summary'])} "
        f"<small>role: {escape(role)}</small></p>{text}<table>{rows}</table></section>"
    )


def _codes(description: str) -> str:
    known = description.split(", ")
    if not all(code.replace("-", "").isalnum() and code.islower() for code in known):
        return escape(description)
    return ", ".join(f'<a href="#{escape(code)}">{escape(code)}</a>' for code in known)


def _schema(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f'<a href="#type-{escape(name)}">{escape(name)}</a>'
    if "anyOf" in schema:
        return " or ".join(_schema(choice) for choice in schema["anyOf"])
    return f"<code>{escape(json.dumps(schema))}</code>" if schema else "bytes"


def _types(document: dict[str, Any]) -> str:
    return "".join(
        f'<section id="type-{escape(name)}"><h3>{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p>'
        f"<table>{_members(schema)}</table></section>"
        for name, schema in sorted(document["components"]["schemas"].items())
    )


def _members(schema: dict[str, Any]) -> str:
    members = schema.get("properties", {}).items()
    return "".join(f"<tr><td><code>{escape(name)}</code><td>{_schema(one)}" for name, one in members)


def _errors(routes: Sequence[Route]) -> str:
    known: dict[str, type[Error]] = {error.code: error for one in routes for error in errors_of(one)}
    rows = "".join(
        f'<tr id="{escape(code)}"><td><code>{escape(code)}</code><td>{error.status}'
        f"<td>{escape((error.__doc__ or '').splitlines()[0])}"
        for code, error in sorted(known.items())
    )
    return f"<table><tr><th>code<th>status<th>meaning{rows}</table>"
