"""What happens around every handler: a request id, an access log line, errors as Problems, authentication."""

import logging
import re
import time
from uuid import uuid4

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from agent.web.auth import Authenticator
from agent.web.call import IDENTITY, STARTED
from agent.web.call import REQUEST_ID as REQUEST_ID_KEY
from agent.web.errors import Error, InternalError, MethodNotAllowed, RequestRefused, RouteNotFound, Unauthorized
from agent.web.log import REQUEST_ID, kv
from agent.web.metrics import HttpMetrics
from agent.wire.problem import Problem

log = logging.getLogger("coldframe.http")

PROBLEM_JSON = "application/problem+json"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def problem_response(problem: Problem) -> web.Response:
    """Render a Problem; facts that JSON does not know (paths, exceptions) become text."""
    headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
    body = msgspec.json.encode(problem, enc_hook=str)
    return web.Response(status=problem.status, body=body, content_type=PROBLEM_JSON, headers=headers)


def outermost(metrics: HttpMetrics) -> Middleware:
    """Give each request an id, log one line for it, count it, and turn every error into a Problem."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.monotonic()
        given = request.headers.get("X-Request-ID", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        request[REQUEST_ID_KEY] = request_id
        token = REQUEST_ID.set(request_id)
        status = 499  # as nginx writes it: the caller went away before there was an answer
        try:
            response = await _answer(request, handler)
            status = response.status
            return response
        finally:
            took_s = time.monotonic() - began
            metrics.observe(request, status, took_s)
            _log_access(request, status, took_s)
            REQUEST_ID.reset(token)

    return middleware


def authentication(authenticator: Authenticator, open_paths: frozenset[str]) -> Middleware:
    """Answer 401 to whoever is not known, on every path but ``open_paths``, whether it exists or not."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in open_paths:
            identity = await authenticator(request)
            if identity is None:
                raise Unauthorized
            request[IDENTITY] = identity
        return await handler(request)

    return middleware


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Error as err:
        problem = err.problem()
        _cut_if_started(request)
        if problem.status >= 500:
            log.exception(kv("request-failed", code=problem.code, detail=problem.detail))
        return problem_response(problem)
    except web.HTTPException as err:
        return _from_aiohttp(request, err)
    except Exception:  # the error middleware: nothing of an unexpected error reaches a client
        _cut_if_started(request)
        log.exception(kv("unexpected-error"))
        return problem_response(InternalError(request_id=request[REQUEST_ID_KEY]).problem())


def _cut_if_started(request: web.Request) -> None:
    """Break the connection of an answer that failed half-way, so that the caller never takes it for whole."""
    if request.get(STARTED) and request.transport is not None:
        request.transport.abort()


def _from_aiohttp(request: web.Request, err: web.HTTPException) -> web.StreamResponse:
    """Render what aiohttp itself raises. OPTIONS is answered with what the path takes."""
    if err.status < 400:
        return web.Response(
            status=err.status, headers={key: err.headers[key] for key in ("Location",) if key in err.headers}
        )
    if isinstance(err, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(err.allowed_methods))
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(status=204, headers={"Allow": allowed})
        response = problem_response(
            MethodNotAllowed(path=request.path, allowed=allowed, method=request.method).problem()
        )
        response.headers["Allow"] = allowed
        return response
    if err.status == 404:
        return problem_response(RouteNotFound(path=request.path).problem())
    problem = RequestRefused(reason=err.reason).problem()
    return problem_response(msgspec.structs.replace(problem, status=err.status))


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Complete the headers of every answer, streamed ones too (aiohttp's ``on_response_prepare``)."""
    request[STARTED] = True
    response.headers["X-Request-ID"] = request.get(REQUEST_ID_KEY, "none")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    # Answers hold paths and states of machines: a cache in between may keep them only to ask again.
    response.headers.setdefault("Cache-Control", "private, no-cache")


def _log_access(request: web.Request, status: int, took_s: float) -> None:
    identity = request.get(IDENTITY)
    log.info(
        kv(
            "request",
            method=request.method,
            path=request.path,
            status=status,
            ms=round(took_s * 1000, 1),
            remote=request.remote or "unix",
            actor=identity.name if identity else None,
        )
    )
