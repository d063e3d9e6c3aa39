"""The controller's API over HTTP, without hosts and with an engine that stands still; every answer is checked."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from agent.wire.access import Role
from controller.app import make_app
from controller.config import Config
from controller.db import Database
from controller.hosts import Hosts
from controller.operations.engine import Engine
from controller.operations.kinds import KINDS
from controller.store import tokens
from tests.web.conformance import Conformance

Client = TestClient[web.Request, web.Application]


class Api:
    """A client with a token for each role."""

    def __init__(self, client: Client, secrets: dict[Role, str]) -> None:
        self.client = client
        self.secrets = secrets

    async def call(
        self, method: str, path: str, role: Role | None = "reader", headers: dict[str, str] | None = None, **more: Any
    ) -> ClientResponse:
        """Make a call as a role, or without a credential."""
        credential = {} if role is None else {"Authorization": f"Bearer {self.secrets[role]}"}
        return await self.client.request(method, path, headers={**credential, **(headers or {})}, **more)

    async def get(self, path: str, role: Role | None = "reader", **more: Any) -> ClientResponse:
        """Read as a role."""
        return await self.call("GET", path, role, **more)

    async def json(self, path: str, role: Role | None = "reader") -> Any:
        """Read what must be there."""
        answer = await self.get(path, role)
        assert answer.status == 200, await answer.text()
        return await answer.json()

    async def code(self, method: str, path: str, role: Role | None = "admin", **more: Any) -> tuple[int, str]:
        """Make a call that is refused; return the status and the Problem's code."""
        answer = await self.call(method, path, role, **more)
        assert answer.content_type == "application/problem+json"
        return answer.status, (await answer.json())["code"]


def application(db: Database, settings: Config) -> web.Application:
    """Return the application as app.py makes it; nothing runs in the background."""
    registry = Hosts(db)
    return make_app(settings, db, registry, Engine(db, registry, KINDS), CollectorRegistry())


@pytest.fixture
async def api(db: Database) -> AsyncIterator[Api]:
    """The API on the test's database."""
    app = application(db, Config(listener_backlog=300))
    conformance = Conformance(app)
    secrets: dict[Role, str] = {}
    for role in ("reader", "operator", "admin"):
        secrets[role] = (await db.run(tokens.create, f"the-{role}", role)).secret
    async with TestClient(TestServer(app)) as client:
        yield Api(client, secrets)
    conformance.verify()
