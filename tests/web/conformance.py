"""Checks every answer that a test sees against the OpenAPI document of the application that gave it."""

import json
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from jsonschema import Draft202012Validator, FormatChecker

from agent.web.application import DOCUMENT

#: What the web layer answers where no route matches: 401 before 404 and 405; OPTIONS is 204.
_WITHOUT_ROUTE = frozenset({401, 404, 405})


class Conformance:
    """Watches one application. Call verify() at the end of the test; a fixture does."""

    def __init__(self, app: web.Application) -> None:
        self.document: dict[str, Any] = app[DOCUMENT]
        self.seen: set[tuple[str, str, int]] = set()
        self.violations: list[str] = []
        app.middlewares.insert(0, self._middleware())

    def verify(self) -> None:
        """Fail where an answer did not fit."""
        assert not self.violations, "\n".join(self.violations)

    def _middleware(self) -> Any:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            for violation in self._check(request, response):
                self.violations.append(f"{request.method} {request.path_qs} → {response.status}: {violation}")
            return response

        return middleware

    def _check(self, request: web.Request, response: web.StreamResponse) -> list[str]:
        resource = request.match_info.route.resource
        if resource is None:
            fits = response.status in _WITHOUT_ROUTE or request.method == hdrs.METH_OPTIONS
            return [] if fits else ["an answer of this status needs a route"]
        method = "get" if request.method == hdrs.METH_HEAD else request.method.lower()
        operation = self.document["paths"].get(resource.canonical, {}).get(method)
        if operation is None:
            return ["the route is not in the document"]
        self.seen.add((request.method, resource.canonical, response.status))
        declared = operation["responses"].get(str(response.status))
        return ["the status is not declared"] if declared is None else self._fit(declared, response, request)

    def _fit(self, declared: dict[str, Any], response: web.StreamResponse, request: web.Request) -> list[str]:
        missing = [f"header {name} is missing" for name in declared.get("headers", {}) if name not in response.headers]
        contents = declared.get("content")
        if contents is None:
            body = getattr(response, "body", None)
            return [*missing, "a body where none is declared"] if body else missing
        content = contents.get(response.content_type)
        if content is None:
            return [*missing, f"{response.content_type} is not declared"]
        if "json" not in response.content_type or not isinstance(response, web.Response):
            return missing
        assert isinstance(response.body, bytes)
        return missing + self.mismatches(content["schema"], json.loads(response.body))

    def mismatches(self, schema: dict[str, Any], value: Any) -> list[str]:
        """Return how a value does not fit a schema of the document."""
        whole = {**schema, "components": self.document["components"]}
        validator = Draft202012Validator(whole, format_checker=FormatChecker())
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
