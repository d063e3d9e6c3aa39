"""The checker itself: it sees what does not fit."""

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from agent.web.application import build
from agent.web.auth import Identity
from agent.web.call import Call, Reply
from agent.web.errors import Error
from agent.web.routes import route
from agent.wire.base import Answer
from tests.web.conformance import Conformance


class Sized(Answer, kw_only=True, frozen=True):
    """A thing with a size."""

    size: int


class Undeclared(Error):
    """No route declares this."""

    status, code, message = 409, "undeclared", "undeclared"


async def wrong_type(call: Call) -> Sized:
    """Answer with something else than was declared."""
    return {"size": "big"}  # type: ignore[return-value]


async def wrong_status(call: Call) -> Reply[Sized]:
    """Answer with a status that was not declared."""
    return Reply(Sized(size=1), status=202)


async def wrong_error(call: Call) -> Sized:
    """Raise an error that was not declared."""
    raise Undeclared


async def root(request: web.Request) -> Identity:
    return Identity("root", "admin")


async def test_each_kind_of_misfit_is_found() -> None:
    handlers = {"/type": wrong_type, "/status": wrong_status, "/error": wrong_error}
    routes = [route("GET", path, handler) for path, handler in handlers.items()]
    app = build(routes, title="T", version="1", authenticator=root)
    conformance = Conformance(app)
    async with TestClient(TestServer(app)) as client:
        for path in handlers:
            await client.get(path)
    assert [line.split(" → ")[0] for line in conformance.violations] == ["GET /type", "GET /status", "GET /error"]
