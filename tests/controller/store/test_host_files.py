from uuid import UUID, uuid4

import pytest

from agent.wire.base import utc_now
from controller.db import Database
from controller.errors import HostFileNotHeld, VmNotFound
from controller.store import host_files, vms
from controller.store.host_files import Kept
from tests.controller.factories import HOST, add_host, add_vm, at, held, host_vm


async def sync(db: Database, vm: UUID, seconds: float, data: bytes = b"data", *, clean: bool = True) -> bool:
    content = held("nvram", data)
    return await db.run(host_files.record_sync, vm, HOST, "nvram", content, "/nvram", at(seconds), clean=clean)


async def nvram(db: Database, vm: UUID) -> Kept:
    return next(kept for kept in await db.run(host_files.of_vm, vm) if kept.type == "nvram")


async def test_a_start_marks_every_host_file_that_the_vm_has_even_where_no_copy_was_taken(db: Database) -> None:
    vm = await db.run(add_vm)
    await db.run(host_files.note_started, vm, HOST, at(1))
    found = {kept.type: (kept.dirty_since, kept.sha256) for kept in await db.run(host_files.of_vm, vm)}
    assert found == {"nvram": (at(1), None), "tpm": (at(1), None)}


async def test_a_bios_vm_without_tpm_has_nothing_to_mark(db: Database) -> None:
    vm = await db.run(add_vm, firmware="bios", tpm=None, nvram=None)
    await db.run(host_files.note_started, vm, HOST, at(1))
    assert await db.run(host_files.of_vm, vm) == []


async def test_a_sync_that_began_after_the_start_clears_the_mark(db: Database) -> None:
    vm = await db.run(add_vm)
    await db.run(host_files.note_started, vm, HOST, at(1))
    assert await sync(db, vm, 2)
    kept = await nvram(db, vm)
    assert (kept.dirty_since, kept.synced_at, kept.reason) == (None, at(2), None)


@pytest.mark.case("B9")
async def test_a_start_during_a_sync_keeps_its_mark(db: Database) -> None:
    vm = await db.run(add_vm)
    await db.run(host_files.note_started, vm, HOST, at(1))
    await db.run(host_files.note_started, vm, HOST, at(3))
    assert await sync(db, vm, 2)
    assert (await nvram(db, vm)).dirty_since == at(3)


@pytest.mark.case("B9")
async def test_a_start_at_the_very_moment_a_sync_began_keeps_its_mark(db: Database) -> None:
    vm = await db.run(add_vm)
    await db.run(host_files.note_started, vm, HOST, at(2))
    await sync(db, vm, 2)
    assert (await nvram(db, vm)).dirty_since == at(2)


async def test_an_event_that_arrives_late_does_not_move_the_mark_back(db: Database) -> None:
    vm = await db.run(add_vm)
    await db.run(host_files.note_started, vm, HOST, at(5))
    await db.run(host_files.note_started, vm, HOST, at(3))
    assert (await nvram(db, vm)).dirty_since == at(5)


@pytest.mark.case("F5")
async def test_a_clock_that_was_set_back_keeps_no_copy_from_being_taken_and_no_mark_from_being_cleared(
    db: Database,
) -> None:
    vm, days = await db.run(add_vm), 3 * 86_400
    now = (utc_now() - at(0)).total_seconds()
    await sync(db, vm, now + days, b"before")
    await db.run(host_files.note_started, vm, HOST, at(now + days + 1))
    before = (await nvram(db, vm)).sha256
    assert await sync(db, vm, now, b"after")
    kept = await nvram(db, vm)
    assert (kept.sha256 != before, kept.dirty_since) == (True, None)


@pytest.mark.case("F5")
async def test_a_start_during_a_sync_keeps_its_mark_after_the_clock_was_set_back(db: Database) -> None:
    vm, days = await db.run(add_vm), 3 * 86_400
    now = (utc_now() - at(0)).total_seconds()
    await db.run(host_files.note_started, vm, HOST, at(now + days))
    await db.run(host_files.note_started, vm, HOST, at(now - 1))
    await sync(db, vm, now - 2)
    assert (await nvram(db, vm)).dirty_since == at(now - 1)


@pytest.mark.case("F5")
@pytest.mark.parametrize("step_days", [-400, 400])
async def test_the_newest_copy_is_the_one_that_was_taken_last_however_the_clock_was_stepped(
    db: Database, step_days: int
) -> None:
    vm = await db.run(add_vm)
    await db.run(add_host, "kvm2")
    now = (utc_now() - at(0)).total_seconds()
    await sync(db, vm, now, b"first")
    await db.run(host_files.note_started, vm, HOST, at(now + 1))
    there = at(now + step_days * 86_400)
    await db.run(host_files.record_sync, vm, "kvm2", "nvram", held("nvram", b"second"), "/n", there)
    assert (await db.run(host_files.newest, vm))["nvram"].host == "kvm2"
    (best,) = [one for one in await db.run(host_files.best, vm, None) if one.type == "nvram"]
    assert (best.host, best.dirty_since) == ("kvm2", None if step_days > 0 else at(now + 1))
    await db.run(host_files.note_started, vm, "kvm2", at(now + 2))
    (best,) = [one for one in await db.run(host_files.best, vm, "kvm3") if one.type == "nvram"]
    assert best.dirty_since is not None


async def test_a_sync_that_ends_after_a_later_one_changes_nothing(db: Database) -> None:
    vm = await db.run(add_vm)
    assert await sync(db, vm, 5, b"newer")
    assert not await sync(db, vm, 4, b"older")
    assert (await db.run(host_files.data, vm, "nvram"))[1] == b"newer"


async def test_a_copy_of_a_running_vm_is_dirty_from_the_beginning(db: Database) -> None:
    vm = await db.run(add_vm)
    await sync(db, vm, 2, clean=False)
    assert (await nvram(db, vm)).dirty_since == at(2)


@pytest.mark.case("B8")
async def test_a_file_that_cannot_be_read_keeps_its_old_copy_and_says_why(db: Database) -> None:
    vm = await db.run(add_vm)
    await sync(db, vm, 1, b"good")
    await db.run(host_files.record_failure, vm, HOST, "nvram", "it is truncated")
    await db.run(host_files.record_sync, vm, HOST, "tpm", held("tpm", b"tpm"), None, at(2))
    kept = await nvram(db, vm)
    assert (kept.reason, kept.synced_at) == ("it is truncated", at(1))
    assert (await db.run(host_files.data, vm, "nvram"))[1] == b"good"
    assert (await db.run(host_files.data, vm, "tpm"))[1] == b"tpm"


async def test_the_newest_copy_is_found_on_whichever_host_it_is(db: Database) -> None:
    vm = await db.run(add_vm)
    await sync(db, vm, 1, b"old")
    await db.run(add_host, "kvm2")
    await db.run(host_files.record_sync, vm, "kvm2", "nvram", held("nvram", b"new"), "/n", at(2))
    assert (await db.run(host_files.newest, vm))["nvram"].host == "kvm2"


async def test_what_is_shown_is_the_copy_of_the_host_that_the_vm_is_on(db: Database) -> None:
    vm = await db.run(add_vm)
    await sync(db, vm, 1, b"here")
    await db.run(host_files.record_sync, vm, "kvm2", "nvram", held("nvram", b"there"), "/n", at(2))
    assert (await db.run(host_files.data, vm, "nvram"))[1] == b"here"
    assert [file.synced_at for file in (await db.run(vms.get, vm)).host_files] == [at(1)]
    await db.run(vms.record_inventory, HOST, [], at(3))
    assert (await db.run(host_files.data, vm, "nvram"))[1] == b"there"


async def test_a_new_copy_takes_the_place_of_the_old_ones_bytes(db: Database) -> None:
    vm = await db.run(add_vm)
    for second in range(3):
        await sync(db, vm, second, b"%d" % second)
    assert (await db.run(host_files.data, vm, "nvram"))[1] == b"2"


async def test_a_vm_that_is_not_known_has_no_host_files(db: Database) -> None:
    with pytest.raises(VmNotFound):
        await db.run(host_files.note_started, uuid4(), HOST, at(1))
    with pytest.raises(VmNotFound):
        await sync(db, host_vm().uuid, 1)
    vm = await db.run(add_vm)
    with pytest.raises(HostFileNotHeld, match="win11"):
        await db.run(host_files.data, vm, "tpm")
