"""The doctor over HTTP."""

from controller.db import Database
from controller.store import hosts, operations
from tests.controller.api.conftest import Api
from tests.controller.factories import HOST, add_snapshot, add_vm


async def test_findings_come_in_pages_and_readers_may_look_and_not_repair(db: Database, api: Api) -> None:
    for name in ("one", "two", "three"):
        await db.run(add_vm, f"gone-{name}", name=name)
    first = await api.json("/v1/doctor?limit=2")
    rest = await api.json(f"/v1/doctor?after={first['next']}")
    assert (len(first["items"]), len(rest["items"]), rest["next"]) == (2, 1, None)
    assert {one["code"] for one in [*first["items"], *rest["items"]]} == {"host-unreachable"}
    assert await api.code("POST", "/v1/doctor/repair", "operator") == (403, "forbidden")
    assert (await api.call("POST", "/v1/doctor/repair", "admin")).status == 202


async def test_verifications_are_queued_where_the_vm_is_and_once_for_each_key(db: Database, api: Api) -> None:
    vm = await db.run(add_vm)
    snapshot = await db.run(add_snapshot, vm)
    for path in (f"/v1/snapshots/{snapshot.uuid}/verify", f"/v1/vms/{vm}/verify?deep=false", "/v1/verify"):
        answers = [
            await (await api.call("POST", path, "operator", headers={"Idempotency-Key": f"k{path}"})).json()
            for _ in range(2)
        ]
        assert answers[0]["uuid"] == answers[1]["uuid"]
    queued = (await db.run(operations.page, 10)).items
    assert [(one.kind, one.vm, one.host) for one in reversed(queued)] == [
        ("snapshot-verify", vm, HOST),
        ("snapshot-verify", vm, HOST),
        ("fleet-verify", None, None),
    ]
    assert [(await db.run(operations.job, one.uuid)).request["deep"] for one in queued] == [True, False, True]
    assert await api.code("POST", f"/v1/snapshots/{vm}/verify") == (404, "snapshot-not-found")
    await db.run(hosts.failed, HOST, "away")
