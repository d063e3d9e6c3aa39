"""The life of a transaction: leases, repeats, aborts, and libvirt that is away."""

import asyncio
import os
import subprocess
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agent.errors import (
    DiskMoved,
    DomainBusy,
    DomainRunning,
    HypervisorUnavailable,
    LeaseExpired,
    Recorded,
    TransactionEnded,
    TransactionMismatch,
)
from agent.transactions.journal import Journal
from agent.transactions.manager import Manager
from tests.agent.transactions import story
from tests.agent.transactions.rig import VM, Rig
from tests.agent.transactions.test_guard import mark_starting
from tests.agent.transactions.test_journal import DAY_S, MONTH_S, ended


@pytest.mark.case("S15")
async def test_same_id_twice_is_one_snapshot_with_the_same_answer(rig: Rig, manager: Manager) -> None:
    id_, asked = uuid4(), story.snapshot_request()
    first, second = await asyncio.gather(manager.put(id_, asked), manager.put(id_, asked))
    assert first == second
    committed = await manager.commit(id_)
    assert await manager.commit(id_) == committed
    assert await manager.put(id_, asked) == committed
    with pytest.raises(TransactionMismatch):
        await manager.put(id_, story.snapshot_request())


async def test_failed_request_repeated_fails_the_same_even_after_a_restart(rig: Rig, manager: Manager) -> None:
    rig.flags("running")
    id_, asked = uuid4(), story.snapshot_request()
    with pytest.raises(DomainRunning):
        await manager.put(id_, asked)
    rig.flags("")
    for again in (manager, rig.manager()):
        if again is not manager:
            await again.recover()
        with pytest.raises(Recorded) as caught:
            await again.put(id_, asked)
        assert caught.value.problem().code == "domain-running"


@pytest.mark.case("S14")
async def test_second_transaction_on_one_domain_is_refused_while_the_first_is_open(rig: Rig, manager: Manager) -> None:
    id_ = uuid4()
    await manager.put(id_, story.snapshot_request())
    with pytest.raises(DomainBusy, match=str(id_)):
        await manager.put(uuid4(), story.snapshot_request())
    await manager.abort(id_)
    assert (await story.snapshot(manager))[0].state == "committed"


async def test_abort_leaves_everything_as_before(rig: Rig, manager: Manager) -> None:
    before, contents = rig.files(), rig.contents()
    id_ = uuid4()
    await manager.put(id_, story.snapshot_request())
    assert rig.files() != before
    assert (await manager.abort(id_)).state == "aborted"
    assert (await manager.abort(id_)).state == "aborted"
    assert (rig.files(), rig.contents()) == (before, contents)
    with pytest.raises(Recorded):
        await manager.commit(id_)


async def test_committed_transaction_cannot_be_aborted(manager: Manager) -> None:
    taken, _ = await story.snapshot(manager)
    with pytest.raises(TransactionEnded):
        await manager.abort(taken.id)


async def test_lease_that_ran_out_undoes_and_says_so(rig: Rig, manager: Manager) -> None:
    before = rig.files()
    id_ = uuid4()
    await manager.put(id_, story.snapshot_request(lease_s=0.0))
    await manager.tick()
    assert rig.files() == before
    assert (error := manager.get(id_).error) is not None
    assert error.code == "lease-expired"
    assert rig.guards.all() == {}


async def test_commit_after_the_lease_is_refused_and_undoes(rig: Rig, manager: Manager) -> None:
    before = rig.files()
    id_ = uuid4()
    await manager.put(id_, story.snapshot_request(lease_s=0.0))
    with pytest.raises(LeaseExpired):
        await manager.commit(id_)
    assert rig.files() == before
    assert rig.guards.all() == {}


async def test_renewed_lease_counts_anew(manager: Manager) -> None:
    id_ = uuid4()
    first = (await manager.put(id_, story.snapshot_request(lease_s=50.0))).lease_expires_at
    renewed = (await manager.renew(id_)).lease_expires_at
    assert first is not None
    assert renewed is not None
    assert renewed > first


async def test_disk_that_was_moved_before_the_commit_is_kept_and_everything_undone(rig: Rig, manager: Manager) -> None:
    before = rig.files()
    id_ = uuid4()
    await manager.put(id_, story.snapshot_request())
    moved = rig.images / "moved.qcow2"
    rig.edit(lambda xml: xml.replace(f"{rig.images}/vdb.qcow2", str(moved)))
    with pytest.raises(DiskMoved):
        await manager.commit(id_)
    assert rig.top("vdb") == moved
    assert rig.top("vda") == rig.images / "vda.qcow2"
    assert rig.files() == before


async def test_edit_of_the_domain_before_the_commit_is_kept(rig: Rig, manager: Manager) -> None:
    id_ = uuid4()
    await manager.put(id_, story.snapshot_request())
    rig.edit(lambda xml: xml.replace("<devices>", "<description>mine</description><devices>"))
    await manager.commit(id_)
    assert "<description>mine</description>" in (rig.hypervisor.directory / f"{VM}.xml").read_text()


async def test_commit_waits_under_guard_while_libvirt_is_away_and_then_ends(rig: Rig, manager: Manager) -> None:
    id_ = uuid4()
    await manager.put(id_, story.snapshot_request())
    rig.hypervisor.failing = {"define"}
    assert (await manager.commit(id_)).state == "committing"
    assert VM in rig.guards.all()
    rig.hypervisor.failing = set()
    await manager.tick()
    assert manager.get(id_).state == "committed"
    assert rig.guards.all() == {}


async def test_recovery_without_libvirt_undoes_at_once_and_redoes_when_it_is_back(tmp_path: Path) -> None:
    undone, redone = Rig(tmp_path / "undo").build(), Rig(tmp_path / "redo").build()
    before = undone.files()
    await undone.manager().put(uuid4(), story.snapshot_request())
    dying = redone.manager()
    id_ = uuid4()
    await dying.put(id_, story.snapshot_request())
    redone.hypervisor.failing = {"define"}
    await dying.commit(id_)
    for rig in (undone, redone):
        rig.hypervisor.failing = {"domain", "inactive_xml", "define"}
    fresh, other = undone.manager(), redone.manager()
    await fresh.recover()
    await other.recover()
    assert [item.state for item in (*fresh.all(), *other.all())] == ["aborted", "committing"]
    assert undone.files() == before
    redone.hypervisor.failing = set()
    await other.tick()
    assert other.get(id_).state == "committed"
    assert undone.guards.all() == redone.guards.all() == {}


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


@pytest.mark.case("F1")
async def test_recovery_that_meets_a_start_undoes_once_the_start_is_over(rig: Rig) -> None:
    def dies(name: str) -> None:
        if name == "before raise-guard":
            raise Killed

    id_, asked = uuid4(), story.snapshot_request()
    with pytest.raises(Killed):
        await rig.manager(dies).put(id_, asked)
    mark = mark_starting(rig.state_dir, os.getpid(), vm=VM)  # nothing was guarded yet, so the domain may start
    manager = rig.manager()
    await manager.recover()
    await manager.tick()
    assert manager.get(id_).state == "aborting"
    with pytest.raises(TransactionEnded):
        await manager.commit(id_)
    mark.unlink()
    await manager.tick()
    assert (manager.get(id_).state, rig.guards.all()) == ("aborted", {})
    assert (await story.snapshot(manager))[0].state == "committed"


async def test_commit_that_recovery_could_not_take_up_is_redone_later(rig: Rig) -> None:
    def dies(name: str) -> None:
        if name == "after journal commit":
            raise Killed

    old = rig.contents()
    with pytest.raises(Killed):
        await story.snapshot(rig.manager(dies))
    guard = rig.state_dir / "guards" / str(VM)
    ours = guard.read_text()
    guard.write_text(ours.replace("transaction=", "transaction=broken-"))  # it can be read by nobody
    manager = rig.manager()
    await manager.recover()
    await manager.tick()
    (left,) = manager.all()
    assert left.state == "committing"
    guard.write_text(ours)
    await manager.tick()
    assert (manager.get(left.id).state, rig.guards.all(), rig.contents()) == ("committed", {}, old)


async def test_libvirt_away_at_prepare_is_a_clear_error_and_nothing_is_left(rig: Rig, manager: Manager) -> None:
    before = rig.files()
    rig.hypervisor.failing = {"inactive_xml"}
    with pytest.raises(HypervisorUnavailable):
        await manager.put(uuid4(), story.snapshot_request())
    assert rig.files() == before


async def test_journal_that_cannot_be_understood_is_set_aside_and_the_agent_starts(rig: Rig) -> None:
    journal = rig.state_dir / "journal"
    journal.mkdir()
    (journal / f"{uuid4()}.jsonl").write_text('{"record": "from another age"}\n')
    manager = rig.manager()
    await manager.recover()
    assert [path.suffix for path in journal.iterdir()] == [".damaged"]
    await story.snapshot(manager)


class Unforeseen(Exception):
    """An error that none of ours stands for."""


class Breaking:
    """A checkpoint at which whatever undoes the disk ``vdb`` breaks, until it is mended."""

    mended = False

    def __call__(self, name: str) -> None:
        if name.startswith("before undo") and "vdb" in name and not self.mended:
            raise Unforeseen


def another_vm(rig: Rig) -> UUID:
    """Define a VM with a disk ``vda`` of its own."""
    image = rig.images / "other.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    known = {path.stem for path in rig.hypervisor.directory.glob("*.xml")}
    rig.neighbour("other", image)
    (made,) = {path.stem for path in rig.hypervisor.directory.glob("*.xml")} - known
    return UUID(made)


async def test_what_breaks_unforeseen_at_one_vm_holds_up_no_lease_of_another(rig: Rig) -> None:
    breaking, other, first, second = Breaking(), another_vm(rig), uuid4(), uuid4()
    manager = rig.manager(breaking)
    await manager.put(first, story.snapshot_request(lease_s=0.0))
    await manager.put(second, story.snapshot_request(vm=other, host_files="none", lease_s=0.0))
    for _ in range(2):
        with pytest.raises(Unforeseen):  # whoever keeps this going logs it, and tries again later
            await manager.tick()
    assert (manager.get(first).state, manager.get(second).state) == ("aborting", "aborted")
    assert list(rig.guards.all()) == [VM]
    breaking.mended = True
    await manager.tick()
    assert (manager.get(first).state, rig.guards.all()) == ("aborted", {})


@pytest.mark.case("F1")
async def test_what_breaks_unforeseen_in_the_recovery_of_one_vm_keeps_no_other_from_being_served(rig: Rig) -> None:
    breaking, other, first, second = Breaking(), another_vm(rig), uuid4(), uuid4()
    dying = rig.manager()
    await dying.put(first, story.snapshot_request())
    await dying.put(second, story.snapshot_request(vm=other, host_files="none"))
    manager = rig.manager(breaking)
    await manager.recover()
    assert (manager.get(first).state, manager.get(second).state) == ("aborting", "aborted")
    with pytest.raises(DomainBusy):
        await manager.put(uuid4(), story.snapshot_request())
    breaking.mended = True
    await manager.tick()
    assert (manager.get(first).state, rig.guards.all()) == ("aborted", {})


async def test_an_agent_that_runs_for_months_forgets_outcomes_as_one_that_starts_does(rig: Rig) -> None:
    directory = rig.state_dir / "journal"
    directory.mkdir()
    made = [ended(Journal(directory), directory, DAY_S) for _ in range(150)]
    manager = rig.manager()
    await manager.recover()
    assert len(manager.all()) == 150
    waiting = uuid4()
    await manager.put(waiting, story.snapshot_request())
    at_work = directory / f"{waiting}.jsonl"
    half_written = at_work.read_bytes() + b'{"record":'
    at_work.write_bytes(half_written)
    for path in (*made[:50], at_work):  # the last one is renewed all the while
        os.utime(path, (time.time() - 2 * MONTH_S,) * 2)
    await manager.forget()
    assert {one.id for one in manager.all()} == {waiting, *(UUID(path.stem) for path in made[50:])}
    assert len(list(directory.iterdir())) == 101
    assert at_work.read_bytes() == half_written
