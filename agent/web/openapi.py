"""The OpenAPI 3.1 document, made of the routes, the wire types and the error tree."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from agent.web import dry_run
from agent.web.errors import (
    BodyTooLarge,
    Error,
    Forbidden,
    InternalError,
    InvalidRequest,
    PreconditionFailed,
    Unauthorized,
    UnsupportedMediaType,
)
from agent.web.routes import JSON, Header, Route
from agent.wire.plan import Plan
from agent.wire.problem import Problem

_REF = "#/components/schemas/{name}"
PROBLEM_JSON = "application/problem+json"


def document(title: str, version: str, routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document. Each problem answer names the codes that this route can give."""
    schemas = Schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for one in routes:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


class Schemas:
    """The schemas of every type that the routes name, shared through ``components``."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._types: list[Any] = [Problem, Plan]
        for one in routes:
            self._types += [*one.path_types.values(), one.body, one.answer, *one.statuses.values()]
        self._types = _distinct(kind for kind in self._types if kind is not None)
        schemas, self.components = msgspec.json.schema_components(self._types, ref_template=_REF)
        self._schemas = list(schemas)

    def of(self, kind: Any) -> dict[str, Any]:
        """Return the schema of a type, a reference where it is a struct."""
        return self._schemas[self._types.index(kind)]


def _distinct(kinds: Iterable[Any]) -> list[Any]:
    """Return each type once; not every annotation can be hashed."""
    found: list[Any] = []
    for kind in kinds:
        if kind not in found:
            found.append(kind)
    return found


def errors_of(declared: Route) -> list[type[Error]]:
    """Return every error that the route can answer with: its own with their subclasses, and what the web layer adds."""
    found: list[type[Error]] = [InvalidRequest, InternalError]
    if declared.role is not None:
        found += [Unauthorized, Forbidden]
    if declared.body_media_type is not None:
        found.append(BodyTooLarge)
    if declared.body is not None:
        found.append(UnsupportedMediaType)
    if any(header.name == "If-Match" for header in declared.headers):
        found.append(PreconditionFailed)
    for error in declared.errors:
        found += [error, *_subclasses(error)]
    return list(dict.fromkeys(found))


def _subclasses(error: type[Error]) -> list[type[Error]]:
    return [found for child in error.__subclasses__() for found in (child, *_subclasses(child))]


def _operation(declared: Route, schemas: Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": getattr(declared.handler, "__qualname__", declared.name).replace(".", "_").lower(),
        "summary": declared.summary,
        "parameters": _parameters(declared, schemas),
        "responses": {**_answers(declared, schemas), **_problems(declared, schemas)},
    }
    if declared.description:
        operation["description"] = declared.description
    if declared.role is None:
        operation["security"] = []
    else:
        operation["x-role"] = declared.role
    if declared.body_media_type is not None:
        schema = {} if declared.body is None else schemas.of(declared.body)
        operation["requestBody"] = {"required": True, "content": {declared.body_media_type: {"schema": schema}}}
    return operation


def _parameters(declared: Route, schemas: Schemas) -> list[dict[str, Any]]:
    found = [
        {"name": name, "in": "path", "required": True, "schema": schemas.of(kind)}
        for name, kind in declared.path_types.items()
    ]
    found += _query_parameters(declared, schemas)
    if declared.planner is not None:
        schema = {"type": "boolean", "default": False}
        more = {"description": dry_run.DESCRIPTION, "schema": schema}
        found.append({"name": dry_run.PARAMETER, "in": "query", "required": False, **more})
    found += [{"name": one.name, "in": "header", "required": one.required, **_header(one)} for one in declared.headers]
    if declared.method == "GET" and declared.media_type == JSON:
        found.append({"name": "If-None-Match", "in": "header", **_header(_IF_NONE_MATCH)})
    return found


_IF_NONE_MATCH = Header("If-None-Match", "Answer 304 where the ETag is still this", pattern=r'\*|(W/)?"[!#-~]*"')
_ETAG = Header("ETag", "The version of this answer", required=True)


def _query_parameters(declared: Route, schemas: Schemas) -> list[dict[str, Any]]:
    if declared.query is None:
        return []
    _, components = msgspec.json.schema_components([declared.query], ref_template=_REF)
    own = components.pop(declared.query.__name__)
    schemas.components.update(components)
    return [
        {
            "name": name,
            "in": "query",
            "required": name in own["required"],
            "description": schema.get("description", ""),
            "schema": _without_null(schema),
        }
        for name, schema in own["properties"].items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an optional parameter: absent means null, and a query cannot say null."""
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return choices[0] if len(choices) == 1 else schema


def _header(header: Header) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if header.pattern is not None:
        schema["pattern"] = f"^(?:{header.pattern})$"
    return {"description": header.description, "schema": schema}


def _answers(declared: Route, schemas: Schemas) -> dict[str, Any]:
    found = {str(declared.status): _answer(declared, declared.answer, schemas)}
    for status, kind in declared.statuses.items():
        found[str(status)] = {"description": "No content"} if kind is None else _answer(declared, kind, schemas)
    if declared.planner is not None:
        found["200"] = _or_plan(found.get("200"), schemas)
    headers = {one.name: _header(one) for one in declared.answer_headers}
    if declared.method == "GET" and declared.media_type == JSON:
        headers["ETag"] = _header(_ETAG)
        found["304"] = {"description": "Not modified"}
    if headers:
        found[str(declared.status)]["headers"] = headers
    return found


def _or_plan(usual: dict[str, Any] | None, schemas: Schemas) -> dict[str, Any]:
    """Return the answer of a route that answers with a plan too."""
    choices = [schemas.of(Plan)]
    if usual is not None and JSON in usual.get("content", {}):
        choices.insert(0, usual["content"][JSON]["schema"])
    schema = choices[0] if len(choices) == 1 else {"anyOf": choices}
    return {"description": "Answer, or the plan", "content": {JSON: {"schema": schema}}}


def _answer(declared: Route, kind: Any, schemas: Schemas) -> dict[str, Any]:
    if kind is None and declared.media_type == JSON:
        return {"description": "No content"}
    schema = {} if kind is None else schemas.of(kind)
    return {"description": "Answer", "content": {declared.media_type: {"schema": schema}}}


def _problems(declared: Route, schemas: Schemas) -> dict[str, Any]:
    codes: dict[int, list[str]] = {}
    for error in errors_of(declared):
        known = codes.setdefault(error.status, [])
        if error.code not in known:
            known.append(error.code)
    problem = schemas.of(Problem)
    return {
        str(status): {
            "description": ", ".join(sorted(known)),
            "content": {
                PROBLEM_JSON: {
                    "schema": {
                        "allOf": [
                            problem,
                            {"properties": {"code": {"enum": sorted(known)}, "status": {"const": status}}},
                        ]
                    }
                }
            },
        }
        for status, known in sorted(codes.items())
    }
