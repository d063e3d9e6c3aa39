"""Dry runs over HTTP: true, and without a trace in the records or on a host."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from agent.web.application import ROUTES
from agent.wire.base import utc_now
from controller.app import make_app
from controller.config import Config
from controller.dry_run import RehearsedHosts
from controller.models import Record
from controller.operations.kinds import KINDS, PLANS
from controller.store import operations, snapshots, tokens, vms
from tests.controller.databases import Databases
from tests.controller.fake_agent import TOKEN
from tests.controller.world import HOST, World, world
from tests.web.conformance import Conformance

OWNER = "d4c7a7d0-2d0e-4a3a-8d66-36d4a5a2a001"
LATER = f"{utc_now().year + 1}-01-01T00:00:00Z"


def records() -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table."""
    models: list[Any] = Record.__subclasses__()
    return {model.__name__: list(model.select().tuples()) for model in models}


class Driver:
    """Makes dry runs as an admin, and sees to it that none leaves a trace."""

    def __init__(self, one: World, client: Any, secret: str) -> None:
        self.one, self.client, self.secret = one, client, secret

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Make a call; return its status and document."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        more = {} if body is None else {"json": body}
        answer = await self.client.request(
            method, path, headers={"Authorization": f"Bearer {self.secret}", **named}, **more
        )
        return answer.status, await answer.json() if answer.content_length else None

    async def plan(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Return the plan; neither records nor host may change."""
        before = await self.one.db.run(records)
        files, transactions = dict(self.one.agent.files), set(self.one.agent.transactions)
        self.one.agent.calls.clear()
        status, plan = await self.call(method, f"{path}{'&' if '?' in path else '?'}dry_run=true", body, **headers)
        assert status == 200, plan
        assert await self.one.db.run(records) == before
        assert (self.one.agent.files, set(self.one.agent.transactions)) == (files, transactions)
        changing = [one for one in self.one.agent.calls if not one.startswith("GET ") and not one.endswith("?dry_run")]
        assert set(changing) <= {"POST /v1/images/check"}
        assert (plan["would"] == "be-refused") == bool(plan["refusals"])
        return plan


@pytest.fixture
async def api(databases: Databases) -> AsyncIterator[Driver]:
    async with world(databases) as one:
        app = make_app(Config(), one.db, one.hosts, one.engine, CollectorRegistry())
        conformance = Conformance(app)
        secret = (await one.db.run(tokens.create, "test", "admin")).secret
        async with TestClient(TestServer(app)) as client:
            driver = Driver(one, client, secret)
            await driver.call("GET", "/v1/vms")  # notes when the token was last used
            yield driver
        conformance.verify()
        await one.mend()
        await one.check()


def names(plan: Any) -> list[str]:
    return [step["name"] for step in plan["steps"]]


def test_every_kind_of_operation_can_be_planned() -> None:
    missing = sorted(KINDS.keys() - PLANS.keys())
    assert missing == [], f"write plan(job) beside run(job), and name it in operations/kinds.py: {missing}"


async def test_every_route_that_changes_anything_answers_a_dry_run_and_changes_nothing(api: Driver) -> None:
    """A new route needs a line here; nothing else, unless it changes more than records or through an operation."""
    one = api.one
    snapshot = await one.snapshot(name="first")
    operation = (await one.sync()).uuid
    token = (await one.db.run(tokens.create, "other", "reader")).token.uuid
    made = await one.db.run(operations.get, operation)
    backup = (await one.db.run(snapshots.get, snapshot)).backup_files[0]
    await api.call("PUT", f"/v1/retention-policies/{HOST}", {"vm": "win11", "keep_last": 1})
    agent = str(one.hosts.client(HOST).url)
    bodies: dict[str, Any] = {
        "POST /v1/hosts": {"name": "kvm2", "url": agent.replace("127.0.0.1", "localhost"), "agent_token": TOKEN},
        "POST /v1/tokens": {"name": "n", "role": "reader", "expires_at": LATER},
        "POST /v1/vms/{vm}/snapshots": {},
        "POST /v1/vms/{vm}/backup-host-files": {"owners": [OWNER]},
        "POST /v1/snapshots/{id}/revert": {},
        "POST /v1/snapshots/{id}/clone": {"names": ["copy"]},
        "POST /v1/vms/{vm}/restore-host-files": {"types": ["nvram"]},
        "POST /v1/vms/{vm}/place": {"host": HOST},
        "PUT /v1/retention-policies/{name}": {"vm": "win11", "keep_last": 1},
        "POST /v1/vms/{vm}/clone": {"names": ["copy"]},
        "PATCH /v1/hosts/{name}": {"name": "kvm9"},
        "PATCH /v1/snapshots/{id}": {"description": "new"},
    }
    assert made.state == "succeeded"
    streamed = "POST /v1/snapshots/import"  # its body is an archive: test_archives.py
    changing = [route for route in api.client.app[ROUTES] if route.changes and route.name != streamed]
    assert len(changing) > 15
    for route in changing:
        row = {"tokens": token, "operations": operation, "backup-files": backup}.get(route.path.split("/")[2], snapshot)
        path = route.path.replace("{vm}", "win11").replace("{name}", HOST).replace("{id}", str(row))
        assert "{" not in path, f"{route.name}: say here what stands in its path"
        assert route.body is None or route.name in bodies, f"{route.name}: give it a body here"
        assert route.planner is not None, f"{route.name} has no dry run: make it in app.routes_of"
        plan = await api.plan(route.method, path, bodies.get(route.name))
        assert plan["refusals"] or plan["steps"] or plan["notes"], route.name


async def test_a_snapshot_is_planned_with_the_host_s_own_steps(api: Driver) -> None:
    plan = await api.plan("POST", "/v1/vms/win11/snapshots", {"name": "first"}, Idempotency_Key="k")
    assert (plan["kind"], plan["would"], plan["vm"], plan["host"]) == (
        "snapshot-create",
        "succeed",
        str(api.one.vm.uuid),
        HOST,
    )
    assert names(plan) == ["do it", "add snapshot first with the host files that were captured"]
    status, operation = await api.call(
        "POST", "/v1/vms/win11/snapshots?wait=20", {"name": "other"}, Idempotency_Key="k"
    )
    assert (status, operation["state"]) == (202, "succeeded")  # the key was not used up


async def test_a_deletion_names_the_records_that_go(api: Driver) -> None:
    first = await api.one.snapshot(name="first")
    await api.one.snapshot(name="second")
    plan = await api.plan("DELETE", f"/v1/snapshots/{first}")
    assert names(plan)[0] == "do it"
    assert {"remove 1 snapshot", "remove 2 backup files", "remove 2 volume snapshots"} <= set(names(plan))
    assert plan["bytes_to_move"] > 0


async def test_a_deletion_while_the_vm_runs_would_wait(api: Driver) -> None:
    first = await api.one.snapshot()
    api.one.vm.state = "running"
    plan = await api.plan("DELETE", f"/v1/snapshots/{first}")
    assert (plan["would"], plan["notes"]) == ("wait", ["it would wait until the VM stops"])
    api.one.vm.state = "shut-off"


async def test_what_stands_in_the_way_is_a_refusal(api: Driver) -> None:
    first = await api.one.snapshot()
    api.one.vm.state = "running"
    plan = await api.plan("POST", "/v1/vms/win11/snapshots", {})
    assert [one["code"] for one in plan["refusals"]] == ["domain-running"]
    plan = await api.plan("POST", f"/v1/snapshots/{first}/revert", {})
    assert [one["code"] for one in plan["refusals"]] == ["domain-running"]
    api.one.vm.state = "shut-off"
    await api.call("PATCH", f"/v1/snapshots/{first}", {"protected": True})
    plan = await api.plan("DELETE", f"/v1/snapshots/{first}")
    assert [one["code"] for one in plan["refusals"]] == ["snapshot-protected"]
    plan = await api.plan("DELETE", f"/v1/snapshots/{uuid4()}")
    assert [one["code"] for one in plan["refusals"]] == ["snapshot-not-found"]
    plan = await api.plan("PATCH", f"/v1/snapshots/{first}", {"name": "x"}, If_Match=f'"{"0" * 64}"')
    assert [one["code"] for one in plan["refusals"]] == ["precondition-failed"]
    api.one.agent.dead = True
    plan = await api.plan("POST", "/v1/vms/win11/snapshots", {})
    assert [one["code"] for one in plan["refusals"]] == ["host-unreachable"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/vms/win11/snapshots?dry_run=perhaps", 400),
        ("/v1/vms/win11/snapshots?dry_run=true&dry_run=false", 400),
    ],
)
async def test_what_is_not_clear_is_refused_and_not_done(api: Driver, path: str, status: int) -> None:
    assert (await api.call("POST", path, {}))[0] == status
    assert await api.one.tree() == []


async def test_a_wrong_request_is_the_same_error_as_without_dry_run(api: Driver) -> None:
    status, told = await api.call("POST", "/v1/vms/win11/snapshots?dry_run=true", {"exclude": ["vdz"]})
    assert (status, told["code"]) == (400, "invalid-request")
    assert (await api.call("GET", "/v1/vms?dry_run=true"))[0] == 400


async def test_a_dry_run_is_no_line_in_the_audit_log_and_needs_the_same_role(api: Driver) -> None:
    await api.plan("POST", "/v1/tokens", {"name": "n", "role": "reader"})
    assert (await api.call("GET", "/v1/audit"))[1]["items"] == []
    reader = (await api.one.db.run(tokens.create, "reader", "reader")).secret
    headers = {"Authorization": f"Bearer {reader}"}
    answer = await api.client.delete(f"/v1/snapshots/{uuid4()}?dry_run=true", headers=headers)
    assert answer.status == 403


async def test_no_secret_is_in_a_plan(api: Driver) -> None:
    body = {"name": "kvm2", "url": "http://127.0.0.1:1", "agent_token": "the-secret-of-the-agent"}
    assert "the-secret-of-the-agent" not in str(await api.plan("POST", "/v1/hosts", body))
    plan = await api.plan("POST", "/v1/tokens", {"name": "n", "role": "reader"})
    assert [step["facts"].keys() for step in plan["steps"]] == [{"table", "rows", "keys"}]


async def test_a_key_that_was_used_says_so(api: Driver) -> None:
    _, operation = await api.call("POST", "/v1/vms/win11/sync?wait=20", Idempotency_Key="again")
    plan = await api.plan("POST", "/v1/vms/win11/sync", Idempotency_Key="again")
    assert operation["uuid"] in plan["notes"][0]


async def test_the_disks_of_a_forgotten_vm_are_planned_and_stay(api: Driver) -> None:
    one = api.one
    await one.snapshot()
    del one.agent.vms[one.vm.uuid]
    await one.db.run(vms.record_inventory, HOST, [], utc_now())
    plan = await api.plan("DELETE", f"/v1/vms/{one.vm.uuid}?disks=true")
    assert plan["would"] == "succeed", plan
    assert {step["path"] for step in plan["steps"] if step["action"] == "remove-image"} == set(one.agent.files)
    one.agent.vms[one.vm.uuid] = one.vm
    plan = await api.plan("DELETE", f"/v1/vms/{one.vm.uuid}?disks=true")
    assert [told["code"] for told in plan["refusals"]] == ["disks-not-removed"]


async def test_a_handler_that_would_change_a_host_in_a_dry_run_cannot(api: Driver) -> None:
    client = RehearsedHosts(api.one.hosts, api.one.db).client(HOST)
    with pytest.raises(TypeError, match="a dry run must not send"):
        await client.release(api.one.vm.uuid)
    assert api.one.agent.calls[-1:] != ["POST /v1/vms/{vm}/release"]
    assert (await client.vm(api.one.vm.uuid)).name == "win11"
