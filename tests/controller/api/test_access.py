import logging
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from agent.web.errors import SettingsError
from controller.auth import authenticator
from controller.config import Config
from controller.db import Database
from controller.models import database
from controller.store import audit, operations
from tests.controller.api.conftest import Api, application
from tests.controller.factories import HOST, add_vm

NEW = {"name": "ansible", "role": "operator"}


@pytest.mark.case("X2")
async def test_a_secret_is_in_the_answer_that_made_it_and_in_no_other(api: Api) -> None:
    answer = await api.call("POST", "/v1/tokens", "admin", json=NEW)
    assert (answer.status, answer.headers["Cache-Control"]) == (201, "no-store")
    secret = (await answer.json())["secret"]
    assert secret.startswith("cf_")
    for path in ("/v1/tokens", "/v1/audit", "/v1/events?follow=false", "/metrics"):
        assert secret not in await (await api.get(path, "admin")).text()


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (NEW | {"name": "a b"}, (422, "name-invalid")),
        (NEW | {"name": "the-admin"}, (409, "token-exists")),
        (NEW | {"role": "root"}, (400, "invalid-request")),
        (NEW | {"expires_at": "2020-01-01T00:00:00Z"}, (400, "invalid-request")),
        (NEW | {"expires_at": "9999-12-31T23:59:59-12:00"}, (400, "invalid-request")),
        (NEW | {"secret": "mine"}, (400, "invalid-request")),
        ({}, (400, "invalid-request")),
    ],
)
async def test_a_token_that_makes_no_sense_is_refused(api: Api, body: dict[str, str], refused: tuple[int, str]) -> None:
    assert await api.code("POST", "/v1/tokens", json=body) == refused


@pytest.mark.case("X10")
async def test_every_changing_call_is_in_the_audit_log_with_who_what_and_how_it_ended(db: Database, api: Api) -> None:
    vm = await db.run(add_vm)
    operation = await db.run(operations.enqueue, "vm-sync", vm, HOST, {})
    await api.call("POST", "/v1/tokens", "admin", json=NEW)
    await api.call("POST", "/v1/tokens", "reader", json=NEW)
    await api.call("DELETE", f"/v1/backup-files/{vm}", "operator")
    await api.call("DELETE", f"/v1/operations/{operation.uuid}", "operator")
    await api.call("POST", "/v1/tokens", "admin", data="{", headers={"Content-Type": "application/json"})
    await api.get("/v1/vms")
    found = (await api.json("/v1/audit", "admin"))["items"][::-1]
    assert [(one["actor"], one["role"], one["method"], one["path"], one["status"]) for one in found] == [
        ("the-admin", "admin", "POST", "/v1/tokens", 201),
        ("the-reader", "reader", "POST", "/v1/tokens", 403),
        ("the-operator", "operator", "DELETE", f"/v1/backup-files/{vm}", 404),
        ("the-operator", "operator", "DELETE", f"/v1/operations/{operation.uuid}", 200),
        ("the-admin", "admin", "POST", "/v1/tokens", 400),
    ]
    assert {one["remote"] for one in found} == {"127.0.0.1"}
    assert await db.run(operations.open_count) == 0


@pytest.mark.case("X10")
async def test_an_audit_line_names_the_operation_that_a_call_began(db: Database, api: Api) -> None:
    vm = await db.run(add_vm)
    answer = await api.call("POST", f"/v1/vms/{vm}/sync", "operator")
    assert answer.status == 202
    (line,) = (await db.run(audit.page, 9)).items
    assert str(line.operation) == (await answer.json())["uuid"]
    assert line.status == 202


@pytest.mark.case("X10")
async def test_a_call_that_cannot_be_noted_down_is_refused_before_it_begins(
    db: Database, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    await db.run(lambda: database.execute_sql("ALTER TABLE audit_entry RENAME TO audit_gone"))
    with caplog.at_level(logging.CRITICAL):
        assert await api.code("POST", "/v1/tokens", json=NEW) == (503, "database-failed")
    await db.run(lambda: database.execute_sql("ALTER TABLE audit_gone RENAME TO audit_entry"))
    assert len((await api.json("/v1/tokens", "admin"))["items"]) == 3


@pytest.mark.case("X5")
async def test_an_unexpected_error_shows_nothing_of_itself(
    db: Database, api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_args: object, **_kwargs: object) -> None:
        raise LookupError("hunter2")

    app = application(db, Config())
    async with TestClient(TestServer(app)) as client:
        monkeypatch.setattr(db, "run", fail)
        with caplog.at_level(logging.CRITICAL):
            answer = await client.get("/v1/vms", headers={"Authorization": "Bearer x"})
            text = await answer.text()
        monkeypatch.undo()
    assert answer.status == 500
    assert "hunter2" not in text


async def test_a_token_file_lets_an_admin_in_and_must_be_private(db: Database, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("bootstrap\n")
    file.chmod(0o644)
    with pytest.raises(SettingsError):
        authenticator(db, file)
    file.chmod(0o600)
    async with TestClient(TestServer(application(db, Config(token_file=file)))) as client:
        answer = await client.post("/v1/tokens", json=NEW, headers={"Authorization": "Bearer bootstrap"})
        assert answer.status == 201
        secret = (await answer.json())["secret"]
        assert (await client.get("/v1/vms", headers={"Authorization": f"Bearer {secret}"})).status == 200
        assert (await client.get("/v1/vms", headers={"Authorization": "Bearer bootstra"})).status == 401
    (line,) = (await db.run(audit.page, 9)).items
    assert line.actor == "token-file"
