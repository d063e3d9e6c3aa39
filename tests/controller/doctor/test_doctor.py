"""The doctor against an agent in memory: each thing that can be wrong is named, and what is safe is mended."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from agent.wire.base import utc_now
from agent.wire.finding import Finding
from agent.wire.fleet import AddHost
from agent.wire.problem import Problem
from agent.wire.transaction import Transaction
from agent.wire.upkeep import Leftover
from agent.wire.vm import Guard
from controller.doctor import examine
from controller.doctor import look as doctor_look
from controller.models import BackupFile, Content, Snapshot, VolumeSnapshot
from controller.operations import repair
from controller.operations.ending import Ending
from controller.store import backup_files, contents, groups, host_files, hosts, invariants, operations, snapshots, vms
from tests.controller.databases import Databases
from tests.controller.factories import held
from tests.controller.fake_agent import TOKEN
from tests.controller.fake_machine import FakeFile, Running
from tests.controller.world import HOST, World, world

UUID_IN_A_NAME = "0f7c2c54-6a63-4a0e-9d0a-6ad2a0f3c0de"


@pytest.fixture
async def one(databases: Databases) -> AsyncIterator[World]:
    async with world(databases) as made:
        yield made


async def look(one: World) -> list[Finding]:
    return await examine.examine(one.db, one.hosts)


async def codes(one: World) -> list[str]:
    return sorted(finding.code for finding in await look(one))


async def repaired(one: World) -> list[Finding]:
    operation = await one.engine.submit("fleet-repair", repair.Wanted(), lambda: (None, None))
    ended = await one.ended(operation.uuid)
    assert ended.state == "succeeded", ended.error
    return msgspec.convert(ended.result["items"], list[Finding])


def leftover(path: str, **changes: Any) -> Leftover:
    values: dict[str, Any] = {"kind": "overlay", "transaction": None, "size_bytes": 1, "mtime": utc_now()}
    return Leftover(path=path, **values | changes)


def running(vm: UUID, **changes: Any) -> Running:
    values: dict[str, Any] = {
        "id": uuid4(),
        "kind": "snapshot",
        "vm": vm,
        "state": "committed",
        "started_at": utc_now(),
    }
    view = Transaction(**values | changes)
    return Running(None, view)  # type: ignore[arg-type]


async def test_a_host_that_takes_too_long_is_named_with_what_is_not_known_of_it(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = asyncio.Event()

    async def hang(_number: int, called: str) -> None:
        if called == "GET /v1/leftovers":
            hung.set()
            await asyncio.sleep(60)

    monkeypatch.setattr(doctor_look, "DEADLINE_S", 0.2)
    one.agent.on_call = hang
    (told,) = await look(one)
    assert hung.is_set()
    assert (told.code, told.host) == ("host-partly-unknown", HOST)
    assert "longer than" in told.what


async def test_a_fleet_that_is_well_has_no_findings_before_and_after_work(one: World) -> None:
    assert await look(one) == []
    first = await one.snapshot()
    await one.snapshot()
    assert (await one.clone(first, "linked")).state == "succeeded"
    await one.revert(first)
    await one.delete(first)
    assert len(await one.hidden()) == 2
    assert await look(one) == []
    assert await repaired(one) == []
    await one.check()


async def test_a_base_that_a_clone_has_left_is_named_and_goes_with_the_next_deletion(one: World) -> None:
    root, node = await one.snapshot(), await one.snapshot()
    made = await one.clone(node, "linked")
    linked = one.agent.vms[UUID(made.result["clones"][0]["vm"])]
    assert (await one.revert(root, undo_point=False)).state == "succeeded"
    assert (await one.delete(node)).state == "succeeded"
    assert await look(one) == []
    del one.agent.vms[linked.uuid]
    for top in linked.tops.values():
        del one.agent.files[top]
    await one.db.run(vms.forget, linked.uuid)
    assert await codes(one) == ["idle-base", "idle-base"]
    assert (await one.delete(root)).result["remarks"] == []
    assert await look(one) == []
    await one.check()


async def test_a_host_that_is_away_is_named_with_the_reason_and_the_others_are_looked_at(one: World) -> None:
    await one.hosts.db.run(hosts.add, "kvm2", "http://127.0.0.1:9", TOKEN)
    await one.hosts.align()
    one.agent.facts = msgspec.structs.replace(
        one.agent.facts, hook="missing", agent_version="0.0.1", libvirt_connected=False
    )
    found = {finding.code: finding.host for finding in await look(one)}
    assert found == {
        "host-unreachable": "kvm2",
        "hook-not-in-force": HOST,
        "version-mismatch": HOST,
        "libvirt-away": HOST,
    }


async def test_a_question_that_is_refused_leaves_the_rest_of_the_host_looked_at(one: World) -> None:
    one.agent.refuse["GET /v1/leftovers"] = "storage-failed"
    assert await codes(one) == ["host-partly-unknown"]


async def test_a_guard_left_behind_is_removed_and_one_of_work_under_way_is_not(one: World) -> None:
    one.vm.guard = Guard(transaction=uuid4(), kind="snapshot", since=utc_now())
    under_way = running(one.vm.uuid, id=one.vm.guard.transaction, state="prepared")
    one.agent.transactions[under_way.view.id] = under_way
    assert await codes(one) == []
    one.agent.transactions.clear()
    assert await codes(one) == ["guard-left-behind"]
    (done,) = await repaired(one)
    assert done.done
    assert one.vm.guard is None


async def test_transactions_that_are_held_up_are_named_with_the_reason(one: World) -> None:
    long_ago = utc_now() - timedelta(hours=1)
    problem = Problem(title="t", status=500, code="storage-failed", detail="the disk is gone")
    for changes in (
        {"state": "aborting", "error": problem},
        {"state": "committing", "started_at": long_ago},
        {"state": "prepared", "lease_expires_at": long_ago},
        {"state": "committing", "kind": "delete", "started_at": long_ago},
        {"state": "preparing"},
    ):
        made = running(one.vm.uuid, **changes)
        one.agent.transactions[made.view.id] = made
    found = [finding.what for finding in await look(one)]
    assert len(found) == 3
    assert "the disk is gone" in found[0]


async def test_a_host_whose_clock_is_apart_is_named_and_its_work_is_judged_by_its_own_clock(one: World) -> None:
    for days in (10, -10):
        there = utc_now() + timedelta(days=days)
        one.agent.facts = msgspec.structs.replace(one.agent.facts, now=there)
        for started in (there - timedelta(minutes=1), there - timedelta(hours=1)):
            one.agent.transactions.clear()
            made = running(one.vm.uuid, state="committing", started_at=started)
            one.agent.transactions[made.view.id] = made
            held_up = ["transaction-held-up"] if there - started > timedelta(minutes=15) else []
            assert await codes(one) == ["clock-apart", *held_up]


async def test_staged_leftovers_go_and_stray_overlays_are_only_named(one: World) -> None:
    await one.snapshot()
    recorded = (await one.tree())[0].volumes[0].path
    stray = f"/images/win11.cf-{UUID_IN_A_NAME}.vda.qcow2"
    under_way = running(one.vm.uuid, state="prepared", lease_expires_at=utc_now() + timedelta(hours=1))
    one.agent.transactions[under_way.view.id] = under_way
    one.agent.leftovers = [
        leftover(stray, dependents=["/images/admin.qcow2"]),
        leftover(recorded),
        leftover(one.vm.tops["vda"], domains=["win11"]),
        leftover("/images/new.qcow2", transaction=under_way.view.id),
        leftover("/nvram/.coldframe-old", kind="staged", removable=True),
        leftover("/nvram/.coldframe-new", kind="staged"),
    ]
    assert {finding.code: finding.path for finding in await look(one)} == {
        "stray-overlay": stray,
        "staged-leftover": "/nvram/.coldframe-old",
    }
    found = {finding.code: finding for finding in await repaired(one)}
    assert found["staged-leftover"].done
    assert found["stray-overlay"].done is None
    assert "/images/admin.qcow2" in found["stray-overlay"].what
    assert "/nvram/.coldframe-old" not in [item.path for item in one.agent.leftovers]
    assert stray in [item.path for item in one.agent.leftovers]


async def test_frozen_files_that_are_gone_or_altered_are_named(one: World) -> None:
    await one.snapshot()
    volumes = {volume.target: volume.path for volume in (await one.tree())[0].volumes}
    one.vm.tops.clear()
    del one.agent.files[volumes["vda"]]
    one.agent.files[volumes["vdb"]].version += 1
    assert await codes(one) == ["frozen-file-altered", "frozen-file-missing"]
    assert not any(finding.done for finding in await repaired(one))


async def test_an_administrators_own_overlay_a_moved_disk_and_a_frozen_file_in_use_are_told_apart(one: World) -> None:
    await one.snapshot()
    volumes = {volume.target: volume.path for volume in (await one.tree())[0].volumes}
    ours = dict(one.vm.tops)
    one.agent.files["/images/admin.qcow2"] = FakeFile(backing=ours["vda"])
    one.vm.tops["vda"] = "/images/admin.qcow2"
    (found,) = await look(one)
    assert (found.code, found.severity, found.safe) == ("foreign-overlay", "warning", False)
    assert "/images/admin.qcow2" in found.what
    assert [finding.done for finding in await repaired(one)] == [None]
    assert one.vm.tops["vda"] == "/images/admin.qcow2"
    one.agent.files["/other/moved.qcow2"] = FakeFile(backing=None)
    one.vm.tops["vda"] = "/other/moved.qcow2"
    assert await codes(one) == ["disk-elsewhere"]
    one.vm.tops["vda"] = volumes["vda"]
    assert await codes(one) == ["frozen-file-in-use"]


async def test_snapshots_that_nobody_works_on_any_more_are_settled_by_asking_the_host(one: World) -> None:
    snapshot = await one.snapshot()
    promised = Ending(kind="revert", transaction=uuid4(), snapshot=snapshot).promised()
    memo = msgspec.to_builtins(promised)
    work = await one.db.run(operations.enqueue, "snapshot-revert", one.vm.uuid, HOST, {}, memo=memo)
    await one.db.run(groups.begin, snapshot, "reverting")
    await one.db.run(operations.finish, work.uuid, "failed", error=Problem.example())
    assert await codes(one) == ["snapshot-held-up"]
    (done,) = await repaired(one)
    assert done.done
    (sync,) = (await one.db.run(operations.page, 1, kind="vm-sync")).items
    assert (await one.ended(sync.uuid)).state == "succeeded"
    assert (await one.tree())[0].state == "ready"
    await one.db.run(groups.fail, snapshot, "for the test")
    assert await codes(one) == ["snapshot-failed"]


async def test_rows_that_belong_to_nothing_are_removed_and_no_others(one: World) -> None:
    snapshot = await one.snapshot()

    def spoil() -> None:
        backup_files.replace("snapshot", uuid4(), {"nvram": held("nvram", b"lost")})
        contents.put(contents.pack(b"nobody's"))

    await one.db.run(spoil)
    assert await codes(one) == ["database-orphan"] * 2
    assert all(finding.done for finding in await repaired(one))
    assert await one.db.run(invariants.orphans) == []
    assert len((await one.db.run(snapshots.get, snapshot)).backup_files) == 2


async def test_dirty_host_files_of_a_vm_that_is_off_are_saved_and_a_conflict_is_named(one: World) -> None:
    await one.sync()
    await one.db.run(host_files.note_started, one.vm.uuid, HOST, utc_now())
    assert await codes(one) == ["host-file-dirty"] * 2
    assert all(finding.done for finding in await repaired(one))
    await one.db.run(operations.page, 1)
    await one.sync()
    assert await codes(one) == []
    await one.hosts.add(
        AddHost(name="kvm2", url=str(one.hosts.client(HOST).url).replace("127.0.0.1", "localhost"), agent_token=TOKEN)
    )
    assert "vm-conflict" in await codes(one)


@pytest.mark.case("F8")
async def test_records_of_before_a_deletion_are_brought_in_line_with_what_the_host_did(one: World) -> None:
    snapshot = await one.snapshot()
    keep = await one.snapshot()
    row, volumes, files, stored = await one.db.run(_rows_of, snapshot)
    await one.delete(snapshot)
    await one.db.run(_put_back, row, volumes, files, stored)
    found = [finding for finding in await look(one) if finding.snapshot == snapshot]
    assert [(finding.code, finding.safe) for finding in found] == [("deleted-on-host", True)]
    assert [finding.code for finding in await repaired(one) if finding.done] == ["deleted-on-host"]
    assert [one.uuid for one in await one.tree()] == [keep]
    assert await one.db.run(invariants.orphans) == []


@pytest.mark.case("F8")
async def test_a_snapshot_that_only_the_host_knows_is_named_unless_its_vm_was_forgotten(one: World) -> None:
    snapshot = await one.snapshot()
    await one.db.run(groups.remove, snapshot)
    (found,) = await look(one)
    assert (found.code, found.snapshot, found.safe) == ("snapshot-not-recorded", snapshot, False)
    await one.db.run(vms.forget, one.vm.uuid)
    await one.db.run(vms.record_inventory, HOST, await one.hosts.client(HOST).vms(), utc_now())
    assert await look(one) == []


async def test_a_vm_at_work_is_not_judged(one: World) -> None:
    await one.snapshot()
    one.agent.files[(await one.tree())[0].volumes[0].path].version += 1
    assert await codes(one) == ["frozen-file-altered"]
    work = await one.db.run(operations.enqueue, "held", one.vm.uuid, HOST, {})
    await one.db.run(operations.claim, work.uuid, "somebody")
    assert await codes(one) == []
    await one.db.run(operations.finish, work.uuid, "succeeded")


async def test_a_repair_that_fails_says_why_and_stays_to_be_seen_to(one: World) -> None:
    one.vm.guard = Guard(transaction=uuid4(), kind="snapshot", since=utc_now())
    one.agent.refuse["POST /v1/vms/{vm}/release"] = "hook-lock-held"
    (found,) = await repaired(one)
    assert found.done is None
    assert found.is_wrong
    assert "hook-lock-held" in found.repair


def _rows_of(snapshot: UUID) -> tuple[Any, ...]:
    """Return a snapshot's rows as an older copy of the database has them."""
    files: list[Any] = list(BackupFile.select().where(BackupFile.owner_uuid == snapshot).dicts())
    stored = list(Content.select().where(Content.sha256.in_([one["content"] for one in files])).dicts())
    row = Snapshot.select().where(Snapshot.uuid == snapshot).dicts().get()
    return row, list(VolumeSnapshot.select().where(VolumeSnapshot.snapshot == snapshot).dicts()), files, stored


def _put_back(row: Any, volumes: Any, files: Any, stored: Any) -> None:
    Content.insert_many(stored).on_conflict_ignore().execute()
    Snapshot.insert(**{**row, "current": False}).execute()
    VolumeSnapshot.insert_many(volumes).execute()
    BackupFile.insert_many(files).execute()


@pytest.mark.case("D3")
async def test_files_that_are_kept_out_of_sight_are_ours_and_nothing_is_wrong_with_them(one: World) -> None:
    node = await one.snapshot()
    await one.snapshot()
    assert (await one.revert(node, undo_point=False)).state == "succeeded"
    await one.snapshot()
    assert (await one.delete(node)).result["hidden"] == ["vda", "vdb"]
    assert await codes(one) == []
    assert await repaired(one) == []
    assert set(await one.hidden()) <= set(one.agent.files)


@pytest.mark.case("D3")
async def test_a_disk_that_is_a_file_kept_out_of_sight_is_named(one: World) -> None:
    node = await one.snapshot()
    await one.snapshot()
    assert (await one.revert(node, undo_point=False)).state == "succeeded"
    await one.snapshot()
    assert (await one.delete(node)).state == "succeeded"
    one.vm.tops["vda"] = next(path for path in await one.hidden() if "vda" in path)
    await one.sync()
    (found,) = [finding for finding in await look(one) if finding.code == "frozen-file-in-use"]
    assert "None" not in found.what + found.repair


async def test_a_snapshot_that_is_dated_later_than_now_is_named(one: World) -> None:
    uuid = await one.snapshot(name="of another year")
    later = utc_now() + timedelta(days=365)
    await one.db.run(lambda: Snapshot.update(created_at=later).where(Snapshot.uuid == uuid).execute())
    (found,) = await examine.examine(one.db, one.hosts)
    assert (found.code, found.snapshot, found.safe) == ("snapshot-dated-ahead", uuid, False)
