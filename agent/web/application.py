"""One aiohttp application out of routes: middleware, the document, the docs page, metrics."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry

from agent.web import docs_page, openapi
from agent.web.auth import Authenticator
from agent.web.call import Call
from agent.web.connections import Connections
from agent.web.metrics import HttpMetrics, exposition
from agent.web.middleware import add_headers, authentication, outermost
from agent.web.routes import PATH_PARAMETER, Route, dispatch, route

#: The routes of an application and its OpenAPI document, for tests and tools.
ROUTES = web.AppKey("routes", list[Route])
DOCUMENT = web.AppKey("document", dict)
#: Set when the daemon stops; a handler that waits (a long poll) returns early then.
STOPPING = web.AppKey("stopping", asyncio.Event)
#: Those who are connected; who listens makes its sockets with it.
CONNECTIONS = web.AppKey("connections", Connections)


def build(
    routes: Sequence[Route],
    *,
    title: str,
    version: str,
    authenticator: Authenticator,
    registry: CollectorRegistry | None = None,
) -> web.Application:
    """Return an application that serves the routes and ``/metrics``, ``/openapi.json`` and ``/docs``.

    Only routes declared with ``role=None`` are open. ``registry`` holds the daemon's own metrics.
    """
    registry = registry or CollectorRegistry()
    own = _Own(registry)
    declared = [
        *routes,
        route("GET", "/metrics", own.metrics, media_type="text/plain"),
        route("GET", "/openapi.json", own.openapi),
        route("GET", "/docs", own.docs, media_type="text/html"),
    ]
    own.document = openapi.document(title, version, declared)
    own.page = lambda: docs_page.page(own.document, declared)
    open_paths = frozenset(one.path for one in declared if one.role is None)
    connections = Connections()
    around = [outermost(HttpMetrics(registry)), authentication(authenticator, open_paths)]
    app = web.Application(middlewares=[connections.middleware, *around])
    for one in declared:
        _add(app, one)
    app[ROUTES], app[DOCUMENT], app[STOPPING] = declared, own.document, asyncio.Event()
    app[CONNECTIONS] = connections
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(_stop)
    return app


class _Own:
    """The routes that every application has."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.document: dict[str, Any] = {}
        self.page: Callable[[], web.Response] = web.Response

    async def metrics(self, call: Call) -> web.Response:
        """Show counters and times for Prometheus."""
        return exposition(self._registry)

    async def openapi(self, call: Call) -> dict[str, Any]:
        """Show this API as an OpenAPI 3.1 document."""
        return self.document

    async def docs(self, call: Call) -> web.Response:
        """Show this API as a page for people."""
        return self.page()


def _add(app: web.Application, declared: Route) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await dispatch(declared, request)

    # aiohttp's own pattern leaves out braces, and a VM may be named {x}.
    path = PATH_PARAMETER.sub(r"{\1:[^/]+}", declared.path)
    app.router.add_route(declared.method, path, handler, expect_handler=_continue)
    if declared.method == hdrs.METH_GET:
        app.router.add_route(hdrs.METH_HEAD, path, handler, expect_handler=_continue)


async def _continue(request: web.Request) -> None:
    """Answer ``Expect: 100-continue``. Any other expectation is ignored: RFC 9110, 10.1.1 leaves that open."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # as aiohttp's own handler does: the answer has not begun


async def _stop(app: web.Application) -> None:
    app[STOPPING].set()
