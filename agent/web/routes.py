"""A route declared once: what the dispatcher parses, and what the OpenAPI document says.

A handler is ``async def show(call: Call, uuid: UUID, query: PageQuery, body: CreateVm) -> Vm``. A parameter named
in the path is converted to its annotation; ``query`` is a Request struct whose fields are the query parameters;
``body`` is decoded JSON. The first sentence of the docstring is the route's summary. A return type of
``web.StreamResponse`` means bytes of ``media_type``.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from aiohttp import web

from agent.web import dry_run
from agent.web.auth import require_role
from agent.web.call import IDENTITY, Call, Reply, refusal
from agent.web.errors import Error, InvalidRequest
from agent.web.etag import of, quote
from agent.wire.access import Role

Handler = Callable[..., Awaitable[Any]]
JSON = "application/json"
BYTES = "application/octet-stream"
_JSON_LIMIT_BYTES = 1024 * 1024  # a revert of a hundred disks has a body of about 20 kB
PATH_PARAMETER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Header:
    """A header that a route reads or answers with. ``pattern`` is a regular expression of the whole value."""

    name: str
    description: str
    required: bool = False
    pattern: str | None = None


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method of one path. ``role`` None: open to all. ``statuses`` are further answers: status → type.

    ``planner`` answers in the handler's place where ``?dry_run=true`` asks what the call would do. ``reads``: the
    method is one that changes things, and this route changes nothing, so that there is nothing to plan.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    description: str
    path_types: Mapping[str, Any]
    query: type[msgspec.Struct] | None
    body: Any
    answer: Any
    status: int
    media_type: str
    body_media_type: str | None
    body_limit_bytes: int
    errors: tuple[type[Error], ...]
    statuses: Mapping[int, Any] = field(default_factory=dict)
    headers: tuple[Header, ...] = ()
    answer_headers: tuple[Header, ...] = ()
    role: Role | None = "reader"
    planner: dry_run.Planner | None = None
    reads: bool = False

    @property
    def name(self) -> str:
        """The route as metrics and documents call it."""
        return f"{self.method} {self.path}"

    @property
    def changes(self) -> bool:
        """Whether a call may change anything, so that it needs a planner."""
        return self.method in dry_run.CHANGING and not self.reads


def route(
    method: str,
    path: str,
    handler: Handler,
    *,
    errors: tuple[type[Error], ...] = (),
    status: int = 200,
    statuses: Mapping[int, Any] | None = None,
    media_type: str = JSON,
    raw_body: bool = False,
    body_limit_bytes: int = _JSON_LIMIT_BYTES,
    headers: tuple[Header, ...] = (),
    answer_headers: tuple[Header, ...] = (),
    role: Role | None = "reader",
    planner: dry_run.Planner | None = None,
    reads: bool = False,
) -> Route:
    """Declare a route from its handler's signature. Raises TypeError for a parameter that nothing fills.

    An error class stands for its subclasses too. ``raw_body``: the handler reads ``call.chunks()``.
    """
    hints = get_type_hints(handler, include_extras=True)
    wanted = [name for name in inspect.signature(handler).parameters if name not in {"self", "call"}]
    in_path = PATH_PARAMETER.findall(path)
    if set(in_path) - set(wanted) or set(wanted) - set(in_path) - {"query", "body"}:
        raise TypeError(f"{method} {path}: the handler's parameters {wanted} do not fit the path's {in_path}")
    body = hints.get("body")
    summary, _, description = inspect.cleandoc(handler.__doc__ or "").partition("\n")
    if not summary:
        raise TypeError(f"{method} {path}: the handler has no docstring")
    return Route(
        method=method,
        path=path,
        handler=handler,
        summary=summary,
        description=description.strip(),
        path_types={name: hints[name] for name in in_path},
        query=hints.get("query"),
        body=body,
        answer=_answer_type(hints.get("return")),
        status=status,
        statuses=statuses or {},
        media_type=media_type,
        body_media_type=JSON if body is not None else BYTES if raw_body else None,
        body_limit_bytes=body_limit_bytes,
        errors=errors,
        headers=headers,
        answer_headers=answer_headers,
        role=role,
        planner=planner,
        reads=reads,
    )


def _answer_type(annotation: Any) -> Any:
    """Return the type of an answer: what a Reply holds; None for no content and for raw bytes."""
    if get_origin(annotation) is Reply:
        return get_args(annotation)[0]
    if annotation is type(None) or (inspect.isclass(annotation) and issubclass(annotation, web.StreamResponse)):
        return None
    return annotation


async def dispatch(declared: Route, request: web.Request) -> web.StreamResponse:
    """Check the role, parse what the route declares, call the handler or the planner, render the answer."""
    if declared.role is not None:
        require_role(request[IDENTITY], declared.role)
    call = Call(request, declared.body_limit_bytes)
    arguments = {name: _path_value(request, name, kind) for name, kind in declared.path_types.items()}
    query = _query_value(request, declared)
    if query is not None:
        arguments["query"] = query
    if declared.body is not None:
        arguments["body"] = await call.json(declared.body)
    if declared.planner is not None and dry_run.is_wanted(request):
        plan = await dry_run.plan(declared.name, declared.planner, call, arguments)
        return render(declared, call, Reply(plan, status=200))
    return render(declared, call, await declared.handler(call, **arguments))


def _path_value(request: web.Request, name: str, kind: Any) -> Any:
    try:
        return msgspec.convert(request.match_info[name], kind, strict=False)
    except msgspec.ValidationError as err:
        raise refusal(err, name) from err


def _query_value(request: web.Request, declared: Route) -> msgspec.Struct | None:
    """Return the query parameters as the route's ``query``; a route without takes none but ``dry_run``."""
    kind = declared.query
    fields = {} if kind is None else {one.encode_name: one.type for one in msgspec.structs.fields(kind)}
    values: dict[str, str | list[str]] = {}
    for name in request.query:
        if name == dry_run.PARAMETER and declared.planner is not None:
            continue
        given = request.query.getall(name)
        if name not in fields:
            raise InvalidRequest(where=f"?{name}", reason="unknown query parameter")
        if get_origin(fields[name]) is list:
            values[name] = given
        elif len(given) > 1:
            raise InvalidRequest(where=f"?{name}", reason="given more than once")
        else:
            values[name] = given[0]
    if kind is None:
        return None
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as err:
        raise refusal(err, "query") from err


def render(declared: Route, call: Call, result: Any) -> web.StreamResponse:
    """Turn a handler's result into a response. A GET gets an ETag, and 304 where the caller has it already."""
    if isinstance(result, web.StreamResponse):
        return result
    reply = result if isinstance(result, Reply) else Reply(result)
    status = reply.status or declared.status
    if reply.value is None:
        return web.Response(status=204 if status == 200 else status, headers=reply.headers)
    body = msgspec.json.encode(reply.value)
    headers = dict(reply.headers)
    if declared.method == "GET" and status == 200:
        tag = of(body)
        headers["ETag"] = quote(tag)
        if call.none_match(tag):
            return web.Response(status=304, headers=headers)
    return web.Response(status=status, body=body, headers=headers, content_type=JSON)
