"""An application of small routes, each of which shows one thing that agent/web does."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any
from uuid import UUID

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from agent.web.application import build
from agent.web.auth import Identity, bearer
from agent.web.call import Call, Reply
from agent.web.errors import Error
from agent.web.paging import PageQuery, page_of
from agent.web.routes import Header, Route, route
from agent.wire.base import Answer, Page, Request
from tests.web.conformance import Conformance

Client = TestClient[web.Request, web.Application]
SECRET_OF_AN_EXCEPTION = "the-database-password"


class Thing(Answer, kw_only=True, frozen=True):
    """A thing."""

    name: str
    size: int


class MakeThing(Request, kw_only=True, frozen=True):
    """The body that makes a thing."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    size: int = 1


class Filter(PageQuery, kw_only=True, frozen=True):
    """Pages of things, filtered."""

    name: list[str] = []
    big: bool = False


class NoThing(Error):
    """There is no such thing."""

    status, code, message = 404, "no-thing", "There is no thing {uuid}"


class NoGoldenThing(NoThing):
    """There is no such golden thing."""

    code = "no-golden-thing"


class Things:
    """Handlers."""

    def __init__(self) -> None:
        self.things = [Thing(name=f"t{number}", size=number) for number in range(5)]

    def routes(self) -> list[Route]:
        if_match = Header("If-Match", "The version to change")
        return [
            route("GET", "/healthz", self.health, role=None),
            route("GET", "/v1/things", self.list),
            route("POST", "/v1/things", self.make, status=201, role="operator"),
            route("GET", "/v1/things/{uuid}", self.show, errors=(NoThing,)),
            route("PUT", "/v1/things/{uuid}", self.change, headers=(if_match,), role="admin"),
            route("DELETE", "/v1/things/{uuid}", self.remove, status=204, role="admin"),
            route("PUT", "/v1/bytes", self.upload, raw_body=True, body_limit_bytes=10),
            route("GET", "/v1/broken", self.broken),
            route("GET", "/v1/half", self.half, media_type="application/octet-stream"),
        ]

    async def health(self, call: Call) -> dict[str, str]:
        """Say that the daemon lives."""
        return {"status": "ok"}

    async def list(self, call: Call, query: Filter) -> Page[Thing]:
        """List things."""
        found = [one for one in self.things if not query.name or one.name in query.name]
        return page_of(found, query, lambda one: one.name)

    async def make(self, call: Call, body: MakeThing) -> Reply[Thing]:
        """Make a thing."""
        key = {"X-Key": call.idempotency_key} if call.idempotency_key else {}
        return Reply(Thing(name=body.name, size=body.size), headers=key)

    async def show(self, call: Call, uuid: UUID) -> Thing:
        """Show a thing."""
        raise (NoGoldenThing if uuid.int == 1 else NoThing)(uuid=uuid)

    async def change(self, call: Call, uuid: UUID) -> Thing:
        """Change a thing."""
        call.require_match("Thing", "v2")
        return self.things[0]

    async def remove(self, call: Call, uuid: UUID) -> None:
        """Remove a thing."""

    async def upload(self, call: Call) -> dict[str, int]:
        """Count bytes."""
        return {"size": len(await call.read())}

    async def broken(self, call: Call) -> Thing:
        """Fail in a way that nobody foresaw."""
        raise RuntimeError(SECRET_OF_AN_EXCEPTION)

    async def half(self, call: Call) -> web.StreamResponse:
        """Fail after the first half of the answer."""
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.enable_chunked_encoding()
        await response.prepare(call.request)
        await response.write(b"half")
        raise RuntimeError(SECRET_OF_AN_EXCEPTION)


async def authenticate(request: web.Request) -> Identity | None:
    """Take the token as the role."""
    role: Any = bearer(request)
    return Identity("tester", role) if role in {"reader", "operator", "admin"} else None


@pytest.fixture
def app() -> web.Application:
    return build(Things().routes(), title="Things", version="1", authenticator=authenticate)


@pytest.fixture
async def connect(app: web.Application) -> AsyncIterator[Callable[[str | None], Awaitable[Client]]]:
    """Clients by role; every answer is checked against the document."""
    conformance = Conformance(app)
    server = TestServer(app)
    await server.start_server()
    clients: list[Client] = []

    async def make(role: str | None) -> Client:
        headers = {"Authorization": f"Bearer {role}"} if role else {}
        clients.append(TestClient(server, headers=headers))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()
    await server.close()
    conformance.verify()


@pytest.fixture
async def client(connect: Callable[[str | None], Awaitable[Client]]) -> Client:
    """An admin's client."""
    return await connect("admin")


@pytest.fixture
async def stranger(connect: Callable[[str | None], Awaitable[Client]]) -> Client:
    """A client without a credential."""
    return await connect(None)
