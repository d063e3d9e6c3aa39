"""Reading hosts, VMs, snapshots, backup files and operations; removing what may be removed."""

import asyncio
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import peewee
import pytest

from agent.web.checkpoint import no_checkpoint
from agent.web.paging import encode_cursor
from controller.db import Database
from controller.models import Content, database
from controller.store import backup_files, host_files, operations
from tests.controller.api.conftest import Api
from tests.controller.factories import HOST, T0, add_host, add_snapshot, add_vm, both, held


async def all_pages(api: Api, path: str, limit: int) -> list[Any]:
    found, after = [], ""
    while True:
        page = await api.json(f"{path}{'&' if '?' in path else '?'}limit={limit}{after}")
        assert len(page["items"]) <= limit
        found += page["items"]
        if page["next"] is None:
            return found
        after = f"&after={page['next']}"


async def test_every_list_comes_in_pages_that_hold_each_thing_once(db: Database, api: Api) -> None:
    for number in range(3):
        vm = await db.run(add_vm, f"kvm{number}", name=f"vm {number}")
        for _ in range(2):
            await db.run(add_snapshot, vm)
        await db.run(operations.enqueue, "vm-sync", vm, HOST, {})
    for path, count in (("hosts", 3), ("vms", 3), ("snapshots", 6), ("backup-files", 12), ("operations", 3)):
        found = await all_pages(api, f"/v1/{path}", 2)
        assert len({str(one.get("uuid") or one["name"]) for one in found}) == len(found) == count, path
    one_vm = await all_pages(api, "/v1/vms/vm%201/snapshots", 1)
    assert one_vm == await all_pages(api, "/v1/snapshots?vm=vm%201", 1)
    assert [one["parent"] for one in one_vm] == [None, one_vm[0]["uuid"]]


@pytest.mark.parametrize("cursor", ["x", "%00", "WyJhIl0", "bnVsbA", "e30"])
@pytest.mark.parametrize("path", ["hosts", "vms", "snapshots", "backup-files", "operations", "tokens", "audit"])
async def test_a_cursor_that_was_not_made_here_is_refused(api: Api, path: str, cursor: str) -> None:
    assert await api.code("GET", f"/v1/{path}?after={cursor}") == (400, "invalid-request")


async def test_a_cursor_with_a_time_of_no_zone_was_not_made_here(api: Api) -> None:
    for time in ("2026-11-02T09:30:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        cursor = encode_cursor([time, uuid4()])
        assert await api.code("GET", f"/v1/backup-files?after={cursor}") == (400, "invalid-request")


async def test_an_unknown_filter_and_a_wrong_value_are_refused(api: Api) -> None:
    for query in ("hst=kvm1", "limit=0", "limit=1001", "limit=x", "state=asleep", "name=a&name=b"):
        assert await api.code("GET", f"/v1/vms?{query}") == (400, "invalid-request")


@pytest.mark.case("X8")
@pytest.mark.parametrize(
    "name", ["win 11", "-rf", "'\"", "Привет", "a%2Fb", "a?b#c", "{vm}", "..%2f", "x" * 255, "a/b"]
)
async def test_a_vm_is_found_by_any_name_in_the_path(db: Database, api: Api, name: str) -> None:
    vm = await db.run(add_vm, name=name)
    assert (await api.json(f"/v1/vms/{quote(name, safe='')}"))["uuid"] == str(vm)
    assert (await api.json(f"/v1/vms/{quote(name, safe='')}/host-files"))["items"] == []


async def test_what_does_not_exist_is_not_found_by_name(api: Api) -> None:
    for path, code in (
        ("/v1/hosts/nowhere", "host-not-found"),
        ("/v1/vms/nobody", "vm-not-found"),
        ("/v1/vms/nobody/host-files", "vm-not-found"),
        ("/v1/vms/nobody/snapshots", "vm-not-found"),
        ("/v1/vms/nobody/host-files/tpm/content", "vm-not-found"),
        (f"/v1/snapshots/{uuid4()}", "snapshot-not-found"),
        (f"/v1/backup-files/{uuid4()}", "backup-file-not-found"),
        (f"/v1/backup-files/{uuid4()}/content", "backup-file-not-found"),
        (f"/v1/operations/{uuid4()}", "operation-not-found"),
    ):
        assert await api.code("GET", path) == (404, code)


async def test_a_name_that_two_vms_have_is_a_conflict(db: Database, api: Api) -> None:
    for _ in range(2):
        await db.run(add_vm, name="twin")
    assert await api.code("GET", "/v1/vms/twin") == (409, "vm-ambiguous")


async def test_an_answer_has_an_etag_that_changes_with_it(db: Database, api: Api) -> None:
    await db.run(add_host)
    tag = (await api.get(f"/v1/hosts/{HOST}")).headers["ETag"]
    assert (await api.get(f"/v1/hosts/{HOST}", headers={"If-None-Match": tag})).status == 304
    await db.run(add_vm)
    assert (await api.get(f"/v1/hosts/{HOST}", headers={"If-None-Match": tag})).status == 200


@pytest.mark.case("B11")
async def test_the_copy_of_a_host_file_is_read_once_and_then_answered_with_304(db: Database, api: Api) -> None:
    vm = await db.run(add_vm)
    await db.run(host_files.record_sync, vm, HOST, "tpm", held("tpm", b"state"), None, T0)
    path = f"/v1/vms/{vm}/host-files/tpm/content"
    answer = await api.get(path, "operator")
    assert await answer.read() == b"state"
    again = await api.get(path, "operator", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status, await again.read()) == (304, b"")
    assert await api.code("GET", f"/v1/vms/{vm}/host-files/nvram/content") == (404, "host-file-not-held")
    assert await api.code("GET", f"/v1/vms/{vm}/host-files/disk/content") == (400, "invalid-request")


@pytest.mark.case("X1")
async def test_a_reader_sees_that_a_backup_exists_and_not_what_is_in_it(db: Database, api: Api) -> None:
    (file,) = await db.run(backup_files.replace, "external", uuid4(), {"tpm": held("tpm", b"secret")})
    assert (await api.json(f"/v1/backup-files/{file.uuid}"))["sha256"] == file.sha256
    assert await api.code("GET", f"/v1/backup-files/{file.uuid}/content", "reader") == (403, "forbidden")
    answer = await api.get(f"/v1/backup-files/{file.uuid}/content", "operator")
    assert (await answer.read(), answer.headers["ETag"]) == (b"secret", f'"{file.sha256}"')


async def test_damaged_bytes_are_an_error_to_whoever_asks_for_them(db: Database, api: Api) -> None:
    (file,) = await db.run(backup_files.replace, "external", uuid4(), {"tpm": held("tpm", b"secret")})
    await db.run(lambda: Content.update(data=b"garbage").execute())
    assert await api.code("GET", f"/v1/backup-files/{file.uuid}/content") == (500, "content-corrupt")


async def test_backup_files_are_listed_by_owner(db: Database, api: Api) -> None:
    one, other = uuid4(), uuid4()
    await db.run(backup_files.replace_many, "external", [one, other], both())
    found = (await api.json(f"/v1/backup-files?owner={one}&type=tpm"))["items"]
    assert [(file["owner_uuid"], file["type"], file["format"]) for file in found] == [(str(one), "tpm", "tar")]


async def test_an_outside_owners_file_goes_when_it_is_still_the_one_that_was_seen(db: Database, api: Api) -> None:
    owner = uuid4()
    (file,) = await db.run(backup_files.replace, "external", owner, {"tpm": held("tpm", b"1")})
    path = f"/v1/backup-files/{file.uuid}"
    seen = (await api.get(path)).headers["ETag"]
    await db.run(backup_files.replace, "external", owner, {"tpm": held("tpm", b"2")})
    assert await api.code("DELETE", path, headers={"If-Match": seen}) == (412, "precondition-failed")
    assert (await api.get(path)).status == 200
    seen = (await api.get(path)).headers["ETag"]
    assert (await api.call("DELETE", path, "operator", headers={"If-Match": seen})).status == 200
    assert await api.code("DELETE", path) == (404, "backup-file-not-found")


async def test_a_snapshots_backup_file_cannot_be_removed_alone(db: Database, api: Api) -> None:
    snapshot = await db.run(lambda: add_snapshot(add_vm()))
    path = f"/v1/backup-files/{snapshot.backup_files[0]}"
    assert await api.code("DELETE", path) == (409, "backup-file-owned")
    assert (await api.json(f"/v1/snapshots/{snapshot.uuid}"))["backup_files"] == [str(u) for u in snapshot.backup_files]


async def test_waiting_answers_when_the_operation_ends_and_not_before(db: Database, api: Api) -> None:
    operation = await db.run(operations.enqueue, "vm-sync", await db.run(add_vm), HOST, {})
    path = f"/v1/operations/{operation.uuid}"
    waiting = asyncio.ensure_future(api.json(f"{path}?wait=30"))
    assert (await api.json(f"{path}?wait=0"))["state"] == "queued"
    await db.run(operations.finish, operation.uuid, "succeeded")
    assert (await asyncio.wait_for(waiting, 10))["state"] == "succeeded"
    assert await api.code("GET", f"{path}?wait=51") == (400, "invalid-request")


async def test_a_queued_operation_is_cancelled_once(db: Database, api: Api) -> None:
    operation = await db.run(operations.enqueue, "vm-sync", await db.run(add_vm), HOST, {})
    path = f"/v1/operations/{operation.uuid}"
    assert await api.code("DELETE", path, headers={"If-Match": f'"{"0" * 64}"'}) == (412, "precondition-failed")
    answer = await api.call("DELETE", path, "operator")
    assert (await answer.json())["state"] == "cancelled"
    assert await api.code("DELETE", path) == (409, "operation-not-cancellable")


@pytest.mark.case("F5")
async def test_ready_says_that_the_database_takes_no_change_until_it_does(db: Database, api: Api) -> None:
    def refuse(_: str) -> None:
        raise peewee.OperationalError("attempt to write a readonly database")

    database.obj.checkpoint = refuse
    assert (await api.call("DELETE", "/v1/retention-policies/none", "admin")).status == 503
    answer = await api.get("/readyz", None)
    assert (answer.status, (await answer.json())["ready"]) == (503, False)
    database.obj.checkpoint = no_checkpoint
    assert (await api.json("/readyz", None))["ready"]
    assert db.failing is None


async def test_ready_says_when_the_database_does_not_answer(db: Database, api: Api) -> None:
    assert (await api.json("/readyz", None))["ready"]
    await db.run(lambda: database.execute_sql("ALTER TABLE event RENAME TO event_gone"))
    answer = await api.get("/readyz", None)
    assert (answer.status, (await answer.json())["ready"]) == (503, False)
    assert (await api.get("/healthz", None)).status == 200
    await db.run(lambda: database.execute_sql("ALTER TABLE event_gone RENAME TO event"))
