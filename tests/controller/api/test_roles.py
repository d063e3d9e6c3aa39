"""Who may do what, on every route that there is: found from the application and not listed by hand."""

import pytest

from agent.web.application import ROUTES
from agent.web.auth import ROLES
from agent.web.routes import Route
from agent.wire.access import Role
from controller.config import Config
from controller.db import Database
from controller.store import tokens
from tests.controller.api.conftest import Api, application

UUID = "6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"

#: What a reader must not see, and what only an admin may touch, whatever the routes declare.
NOT_FOR_READERS = ("/content", "/v1/tokens", "/v1/audit")
FOR_ADMINS = ("/v1/tokens", "/v1/audit")


def concrete(path: str) -> str:
    for name, value in (("{id}", UUID), ("{vm}", UUID), ("{name}", "kvm1"), ("{type}", "nvram")):
        path = path.replace(name, value)
    assert "{" not in path
    return path + ("?follow=false" if path == "/v1/events" else "")


async def routes_of(db: Database) -> list[Route]:
    app = application(db, Config())
    return app[ROUTES]


@pytest.mark.case("X1")
async def test_without_a_credential_only_health_answers(db: Database, api: Api) -> None:
    for one in await routes_of(db):
        answer = await api.call(one.method, concrete(one.path), None)
        assert answer.status == (200 if one.path in {"/healthz", "/readyz"} else 401), one.name
    assert (await api.get("/no/such/route", None)).status == 401


@pytest.mark.case("X1")
@pytest.mark.parametrize("role", ROLES)
async def test_each_role_gets_as_far_as_its_row_says_on_every_route(db: Database, api: Api, role: Role) -> None:
    for one in await routes_of(db):
        if one.role is None:
            continue
        answer = await api.call(one.method, concrete(one.path), role)
        allowed = ROLES.index(role) >= ROLES.index(one.role)
        assert (answer.status != 403) == allowed, f"{role}: {one.name} answers {answer.status}"


@pytest.mark.case("X1")
async def test_no_route_that_changes_or_shows_secrets_is_open_to_readers(db: Database) -> None:
    for one in await routes_of(db):
        if one.method != "GET" or any(part in one.path for part in NOT_FOR_READERS):
            assert one.role in {"operator", "admin"}, one.name
        if one.path.startswith(FOR_ADMINS) or (one.method != "GET" and one.path.startswith("/v1/hosts")):
            assert one.role == "admin", one.name


@pytest.mark.case("X2")
async def test_a_revoked_token_is_refused_from_the_next_call_on(db: Database, api: Api) -> None:
    made = await (await api.call("POST", "/v1/tokens", "admin", json={"name": "n", "role": "reader"})).json()
    api.secrets["reader"] = made["secret"]
    assert (await api.get("/v1/vms")).status == 200
    assert (await api.call("DELETE", f"/v1/tokens/{made['token']['uuid']}", "admin")).status == 200
    assert await api.code("GET", "/v1/vms", "reader") == (401, "unauthorized")
    assert await db.run(tokens.verify, made["secret"]) is None
