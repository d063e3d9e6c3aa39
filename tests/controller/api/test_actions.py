"""The calls that start work, over HTTP, against a running engine and an agent in memory."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from agent.wire.base import utc_now
from agent.wire.fleet import AddHost
from controller.app import make_app
from controller.config import Config
from controller.models import Snapshot
from controller.store import hosts, tokens, vms
from tests.controller.databases import Databases
from tests.controller.fake_agent import TOKEN
from tests.controller.world import HOST, World, world
from tests.web.conformance import Conformance


class Driver:
    """Makes calls as an admin."""

    def __init__(self, one: World, client: Any, secret: str) -> None:
        self.one, self.client, self.secret = one, client, secret

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> ClientResponse:
        """Make a call."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        more = {} if body is None else {"json": body}
        answer: ClientResponse = await self.client.request(
            method, path, headers={"Authorization": f"Bearer {self.secret}", **named}, **more
        )
        return answer

    async def done(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Start an operation and return it ended."""
        answer = await self.call(method, f"{path}?wait=20", body, **headers)
        operation = await answer.json()
        assert answer.status == 202, operation
        assert answer.headers["Location"] == f"/v1/operations/{operation['uuid']}"
        assert operation["state"] in {"succeeded", "failed"}
        return operation

    async def code(self, method: str, path: str, body: Any = None, **headers: str) -> str:
        """Make a call that is refused at once, with nothing queued."""
        before = (await (await self.call("GET", "/v1/operations")).json())["items"]
        answer = await self.call(method, path, body, **headers)
        told = await answer.json()
        assert 400 <= answer.status < 500, told
        assert (await (await self.call("GET", "/v1/operations")).json())["items"] == before
        return str(told["code"])


@pytest.fixture
async def api(databases: Databases) -> AsyncIterator[Driver]:
    async with world(databases) as one:
        app = make_app(Config(), one.db, one.hosts, one.engine, CollectorRegistry())
        conformance = Conformance(app)
        secret = (await one.db.run(tokens.create, "test", "admin")).secret
        async with TestClient(TestServer(app)) as client:
            yield Driver(one, client, secret)
        conformance.verify()
        await one.mend()
        await one.check()


async def test_create_revert_ungroup_and_delete(api: Driver) -> None:
    made = await api.done("POST", "/v1/vms/win11/snapshots", {"name": "first"})
    uuid = made["result"]["snapshot"]
    shown = await (await api.call("GET", f"/v1/snapshots/{uuid}")).json()
    assert (shown["name"], shown["current"], len(shown["backup_files"])) == ("first", True, 2)
    reverted = await api.done("POST", f"/v1/snapshots/{uuid}/revert", {})
    await api.done("DELETE", f"/v1/snapshots/{reverted['result']['undo_point']}")
    assert (await api.done("POST", f"/v1/snapshots/{uuid}/ungroup"))["state"] == "succeeded"
    assert (await api.done("DELETE", f"/v1/snapshots/{uuid}"))["state"] == "succeeded"
    assert (await api.call("GET", f"/v1/snapshots/{uuid}")).status == 404


@pytest.mark.case("C4")
async def test_clone_a_snapshot_and_a_vm_and_see_what_a_vm_was_cloned_from(api: Driver) -> None:
    snapshot = await api.one.snapshot()
    body = {"names": ["a", "b"], "tpm": "copy"}
    first = await api.done("POST", f"/v1/snapshots/{snapshot}/clone", body, Idempotency_Key="c")
    assert await api.done("POST", f"/v1/snapshots/{snapshot}/clone", body, Idempotency_Key="c") == first
    assert [one["name"] for one in first["result"]["clones"]] == ["a", "b"]
    shown = await (await api.call("GET", "/v1/vms/a")).json()
    assert (shown["clone"]["snapshot"], shown["clone"]["tpm"]) == (str(snapshot), "copy")
    uuid = str(uuid4())
    as_it_stands = await api.done("POST", "/v1/vms/win11/clone", {"names": ["c"], "uuids": [uuid]})
    assert as_it_stands["result"]["clones"][0]["vm"] == uuid


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"names": []}, "invalid-request"),
        ({"names": ["a", "a"]}, "invalid-request"),
        ({"names": ["a"], "uuids": [str(uuid4()), str(uuid4())]}, "invalid-request"),
        ({"names": ["a"], "mode": "half"}, "invalid-request"),
        ({"names": ["a/b"]}, "name-invalid"),
        ({"names": ["--all"]}, "name-invalid"),
        ({"names": ["a\n"]}, "name-invalid"),
    ],
)
async def test_clones_that_cannot_be_are_refused_at_once(api: Driver, body: Any, code: str) -> None:
    snapshot = await api.one.snapshot()
    assert await api.code("POST", f"/v1/snapshots/{snapshot}/clone", body) == code
    assert await api.code("POST", "/v1/vms/win11/clone", body) == code


async def test_without_wait_the_answer_comes_at_once_and_the_operation_can_be_waited_for(api: Driver) -> None:
    answer = await api.call("POST", f"/v1/vms/{api.one.vm.uuid}/sync")
    assert answer.status == 202
    ended = await (await api.call("GET", f"{answer.headers['Location']}?wait=20")).json()
    assert ended["state"] == "succeeded"


@pytest.mark.case("B2")
async def test_back_up_host_files_to_owners(api: Driver) -> None:
    owners = [str(uuid4()), str(uuid4())]
    operation = await api.done("POST", "/v1/vms/win11/backup-host-files", {"owners": [*owners, owners[0]]})
    assert len(operation["result"]["backup_files"]) == 4
    assert await api.code("POST", "/v1/vms/win11/backup-host-files", {"owners": []}) == "invalid-request"


@pytest.mark.case("S15")
async def test_the_same_idempotency_key_gives_the_same_operation(api: Driver) -> None:
    body = {"name": "once"}
    first = await api.done("POST", "/v1/vms/win11/snapshots", body, Idempotency_Key="k1")
    assert await api.done("POST", "/v1/vms/win11/snapshots", body, Idempotency_Key="k1") == first
    other = await api.code("POST", "/v1/vms/win11/snapshots", {"name": "other"}, Idempotency_Key="k1")
    assert other == "idempotency-conflict"
    assert len(await api.one.tree()) == 1


@pytest.mark.case("S15")
async def test_a_repeated_delete_with_its_key_tells_of_the_first_one(api: Driver) -> None:
    uuid = await api.one.snapshot()
    first = await api.done("DELETE", f"/v1/snapshots/{uuid}", Idempotency_Key="d")
    assert await api.done("DELETE", f"/v1/snapshots/{uuid}", Idempotency_Key="d") == first
    assert await api.code("DELETE", f"/v1/snapshots/{uuid}") == "snapshot-not-found"


@pytest.mark.case("S15")
async def test_the_same_snapshot_uuid_twice_makes_one_snapshot_and_a_failed_try_can_be_repeated(api: Driver) -> None:
    uuid = str(uuid4())
    body = {"name": "mine", "uuid": uuid}
    api.one.vm.state = "running"
    assert (await api.done("POST", "/v1/vms/win11/snapshots", body))["state"] == "failed"
    api.one.vm.state = "shut-off"
    first = await api.done("POST", "/v1/vms/win11/snapshots", body)
    assert first["result"]["snapshot"] == uuid
    assert await api.done("POST", "/v1/vms/win11/snapshots", body) == first
    assert await api.code("POST", "/v1/vms/win11/snapshots", {"name": "other", "uuid": uuid}) == "snapshot-exists"


async def test_the_hosts_reason_is_the_operations_error(api: Driver) -> None:
    api.one.vm.state = "running"
    operation = await api.done("POST", "/v1/vms/win11/snapshots", {})
    assert operation["error"]["code"] == "domain-running"


@pytest.mark.parametrize("name", ["", " x", "a\nb", "a\u0000", "x" * 256, "\u2028"])
async def test_bad_names_are_refused_at_once(api: Driver, name: str) -> None:
    assert await api.code("POST", "/v1/vms/win11/snapshots", {"name": name}) == "name-invalid"


async def test_odd_names_are_taken_as_they_are(api: Driver) -> None:
    for name in ("-rf", 'it\'s "quoted" $(x)', "äöü 雪", "x" * 255):
        assert (await api.done("POST", "/v1/vms/win11/snapshots", {"name": name}))["state"] == "succeeded"
    assert len(await api.one.tree()) == 4


async def test_bad_requests_are_refused_at_once(api: Driver) -> None:
    uuid = await api.one.snapshot()
    vm, snapshot = "/v1/vms/win11/snapshots", f"/v1/snapshots/{uuid}"
    assert await api.code("POST", vm, {"exclude": ["vdq"]}) == "invalid-request"
    assert await api.code("POST", vm, {"nmae": "x"}) == "invalid-request"
    assert await api.code("POST", vm, {"labels": {"": "x"}}) == "name-invalid"
    assert await api.code("POST", "/v1/vms/nobody/snapshots", {}) == "vm-not-found"
    assert await api.code("POST", f"{snapshot}/revert", {"volumes": ["vdq"]}) == "invalid-request"
    assert await api.code("POST", f"{snapshot}/revert", {"volumes": []}) == "invalid-request"
    assert await api.code("POST", f"/v1/snapshots/{uuid4()}/revert", {}) == "snapshot-not-found"
    assert await api.code("POST", f"{snapshot}/revert", {}, Idempotency_Key="a b") == "invalid-request"
    assert await api.code("POST", f"{vm}?wait=999", {}) == "invalid-request"


async def test_if_match_lets_only_the_version_through_that_was_seen(api: Driver) -> None:
    uuid = await api.one.snapshot()
    seen = (await api.call("GET", f"/v1/snapshots/{uuid}")).headers["ETag"]
    await api.one.snapshot()
    assert await api.code("DELETE", f"/v1/snapshots/{uuid}", If_Match=seen) == "precondition-failed"
    now = (await api.call("GET", f"/v1/snapshots/{uuid}")).headers["ETag"]
    assert (await api.done("DELETE", f"/v1/snapshots/{uuid}", If_Match=now))["state"] == "succeeded"


async def test_a_protected_or_unfinished_snapshot_is_refused_at_once(api: Driver) -> None:
    uuid = await api.one.snapshot()

    async def put(**values: Any) -> None:
        await api.one.db.run(lambda: Snapshot.update(**values).where(Snapshot.uuid == uuid).execute())

    await put(protected=True)
    assert await api.code("DELETE", f"/v1/snapshots/{uuid}") == "snapshot-protected"
    assert await api.code("POST", f"/v1/snapshots/{uuid}/ungroup") == "snapshot-protected"
    await put(protected=False, state="creating")
    assert await api.code("DELETE", f"/v1/snapshots/{uuid}") == "snapshot-busy"
    assert await api.code("POST", f"/v1/snapshots/{uuid}/revert", {}) == "snapshot-busy"
    await put(state="ready")


@pytest.mark.case("P8")
async def test_a_vm_that_two_hosts_define_is_refused_for_changing_work(api: Driver) -> None:
    facts = await api.one.hosts.client(HOST).vms()
    await api.one.db.run(hosts.add, "kvm2", "http://127.0.0.1:1", "x")
    await api.one.db.run(vms.record_inventory, "kvm2", facts, utc_now())
    assert await api.code("POST", "/v1/vms/win11/snapshots", {}) == "vm-conflict"


async def test_hosts_are_enrolled_and_taken_out(api: Driver) -> None:
    url = (await (await api.call("GET", f"/v1/hosts/{HOST}")).json())["url"]
    assert await api.code("POST", "/v1/hosts", {"name": "kvm2", "url": url, "agent_token": TOKEN}) == "host-url-taken"
    body = {"name": "kvm2", "url": url.replace("127.0.0.1", "localhost"), "agent_token": TOKEN}
    answer = await api.call("POST", "/v1/hosts", body)
    assert (answer.status, answer.headers["Location"]) == (201, "/v1/hosts/kvm2")
    assert TOKEN not in await answer.text()
    assert await api.code("POST", "/v1/hosts", body) == "host-exists"
    assert (await api.call("DELETE", "/v1/hosts/kvm2")).status == 204
    assert await api.code("DELETE", "/v1/hosts/kvm2") == "host-not-found"


async def test_a_host_is_changed_where_the_caller_saw_it_as_it_is(api: Driver) -> None:
    where = f"/v1/hosts/{HOST}"
    seen = await api.call("GET", where)
    url = (await seen.json())["url"].replace("127.0.0.1", "localhost")
    for bad in ({}, {"name": "../x"}, {"agent_token": "a\r\nb"}, {"url": "ftp://x"}, {"fingerprint": "zz"}):
        assert await api.code("PATCH", where, bad) in {"invalid-request", "name-invalid"}, bad
    changed = await api.call("PATCH", where, {"url": url}, **{"If-Match": seen.headers["ETag"]})
    assert (changed.status, (await changed.json())["url"]) == (200, url)
    stale = await api.call("PATCH", where, {"name": "new"}, **{"If-Match": seen.headers["ETag"]})
    assert (stale.status, (await stale.json())["code"]) == (412, "precondition-failed")
    assert await api.code("PATCH", "/v1/hosts/nowhere", {"url": url}) == "host-not-found"
    assert TOKEN not in await changed.text()


async def test_a_host_that_cannot_be_used_is_refused_and_not_recorded(api: Driver) -> None:
    url = (await (await api.call("GET", f"/v1/hosts/{HOST}")).json())["url"]
    good = {"name": "kvm2", "url": url, "agent_token": TOKEN}
    assert await api.code("POST", "/v1/hosts", {**good, "agent_token": "wrong"}) == "agent-refused-token"
    assert await api.code("POST", "/v1/hosts", {**good, "agent_token": "a\r\nb"}) == "invalid-request"
    assert await api.code("POST", "/v1/hosts", {**good, "name": "../x"}) == "name-invalid"
    assert await api.code("POST", "/v1/hosts", {**good, "fingerprint": "zz"}) == "invalid-request"
    for bad in ("ftp://x", "http://", "http://u:p@h:1", "http://h:99999", "unix://x", "", "http://h/?q=1"):
        assert await api.code("POST", "/v1/hosts", {**good, "url": bad}) == "invalid-request", bad
    dead = await api.call("POST", "/v1/hosts", {**good, "url": "http://127.0.0.1:1"})
    assert (dead.status, (await dead.json())["code"]) == (502, "host-unreachable")
    assert await api.one.db.run(hosts.names) == [HOST]


async def test_a_host_with_work_under_way_is_not_taken_out(api: Driver) -> None:
    await api.one.kill()
    queued = await api.call("POST", "/v1/vms/win11/sync")
    assert await api.code("DELETE", f"/v1/hosts/{HOST}") == "host-busy"
    api.one.engine = await api.one.new_engine().__aenter__()
    await api.one.ended(UUID((await queued.json())["uuid"]))


async def test_adding_the_host_again_brings_its_vms_back(api: Driver) -> None:
    uuid = await api.one.snapshot()
    url = (await (await api.call("GET", f"/v1/hosts/{HOST}")).json())["url"]
    assert (await api.call("DELETE", f"/v1/hosts/{HOST}")).status == 204
    assert await api.code("POST", f"/v1/snapshots/{uuid}/revert", {}) == "vm-nowhere"
    await api.one.hosts.add(AddHost(name=HOST, url=url, agent_token=TOKEN))
    assert (await api.done("POST", f"/v1/snapshots/{uuid}/revert", {}))["state"] == "succeeded"
