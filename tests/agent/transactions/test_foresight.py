"""Dry runs of transactions, on real images, NVRAM, TPM state, guards and journal: true, and without a trace."""

import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import HostFileDamaged
from agent.transactions.describe import planned_steps
from agent.transactions.foresight import Foresight
from agent.transactions.journal import Journal
from agent.transactions.manager import Manager
from agent.wire.plan import Plan
from agent.wire.transaction import TransactionRequest
from tests.agent.transactions import story
from tests.agent.transactions.rig import VM, Rig, nvram


def trace(root: Path) -> dict[str, tuple[int, str]]:
    """Return every file and directory with its time of change and its bytes."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in [root, *root.rglob("*")]
    }


async def foreseen(rig: Rig, manager: Manager, request: TransactionRequest) -> Plan:
    """Plan under a new id, and see that nothing was touched."""
    before = trace(rig.root)
    plan = await Foresight(manager).begin(uuid4(), request)
    assert trace(rig.root) == before
    return plan


async def hold_to_it(rig: Rig, manager: Manager, request: TransactionRequest) -> Plan:
    """Plan, then prepare under the same id: what the journal holds is what was foreseen."""
    id_, before = uuid4(), trace(rig.root)
    plan = await Foresight(manager).begin(id_, request)
    assert trace(rig.root) == before
    assert (plan.would, plan.refusals) == ("succeed", [])
    prepared = await manager.put(id_, request)
    journalled = {entry.transaction.id: entry.plan for entry in Journal(rig.state_dir / "journal").entries()}[id_]
    assert plan.steps == planned_steps(journalled.steps())
    assert [step.name for step in plan.steps] == prepared.steps
    assert plan.bytes_to_move == prepared.total_bytes
    await manager.abort(id_)
    return plan


async def test_what_is_foreseen_of_a_snapshot_is_what_is_journalled(rig: Rig, manager: Manager) -> None:
    plan = await hold_to_it(rig, manager, story.snapshot_request())
    assert {step.action for step in plan.steps} >= {"create-overlay", "capture-host-file", "switch-disks"}


async def test_what_is_foreseen_of_a_revert_is_what_is_journalled(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    story.change_everything(rig)
    plan = await hold_to_it(rig, manager, story.revert_request(taken, host_files))
    assert {step.path for step in plan.steps if step.action == "swap-host-file"} == {str(rig.nvram), str(rig.tpm)}


async def test_what_is_foreseen_of_a_deletion_is_what_is_journalled(rig: Rig, manager: Manager) -> None:
    first, _ = await story.snapshot(manager)
    story.change_everything(rig)
    children = {target: [str(rig.top(target))] for target in rig.targets}
    plan = await hold_to_it(rig, manager, story.delete_request(first, children))
    assert plan.bytes_to_move > 0


@pytest.mark.parametrize("mode", ["linked", "full"])
async def test_what_is_foreseen_of_a_clone_is_what_is_journalled(rig: Rig, manager: Manager, mode: str) -> None:
    taken, host_files = await story.snapshot(manager)
    plan = await hold_to_it(rig, manager, story.clone_request(taken, host_files, mode=mode))
    assert plan.steps[-1].action == "define-domain"
    assert bool(plan.bytes_to_move) == (mode == "full")


@pytest.mark.parametrize(("flag", "code"), [("running", "domain-running"), ("saved", "domain-managed-save")])
async def test_a_vm_that_is_not_at_rest_is_a_refusal_beside_the_steps(
    rig: Rig, manager: Manager, flag: str, code: str
) -> None:
    rig.flags(flag)
    plan = await foreseen(rig, manager, story.snapshot_request())
    assert (plan.would, [one.code for one in plan.refusals]) == ("be-refused", [code])
    assert [step.action for step in plan.steps].count("create-overlay") == len(rig.targets)


async def test_every_disk_that_cannot_be_read_is_named(rig: Rig, manager: Manager) -> None:
    for target in rig.targets:
        rig.top(target).write_bytes(b"not qcow2")
    plan = await foreseen(rig, manager, story.snapshot_request())
    assert {one.facts["target"] for one in plan.refusals} == set(rig.targets)
    assert plan.steps == []


async def test_the_planner_s_own_refusals_are_told(rig: Rig, manager: Manager) -> None:
    plan = await foreseen(rig, manager, story.snapshot_request(exclude=["vdz"]))
    assert [one.code for one in plan.refusals] == ["disk-unknown"]
    full = rig.manager(reserve_bytes=1 << 60)
    assert [one.code for one in (await foreseen(rig, full, story.snapshot_request())).refusals] == ["no-space"]
    rig.nvram.unlink()
    plan = await foreseen(rig, manager, story.snapshot_request())
    assert [one.code for one in plan.refusals] == ["host-file-missing"]


async def test_a_transaction_at_work_is_told_at_once_and_is_not_disturbed(rig: Rig, manager: Manager) -> None:
    id_, request = uuid4(), story.snapshot_request()
    await manager.put(id_, request)
    plan = await foreseen(rig, manager, story.snapshot_request())
    assert [one.code for one in plan.refusals] == ["domain-busy"]
    again = await Foresight(manager).begin(id_, request)
    assert again.notes == ["it was begun already and is prepared: nothing more would be done"]
    commit = await Foresight(manager).commit(id_)
    assert [step.action for step in commit.steps][-1] == "drop-guard"
    undone = Foresight(manager).abort(id_)
    assert {step.action for step in undone.steps} >= {"undo-create-overlay", "undo-capture-host-file"}
    assert (await Foresight(manager).release(VM)).steps == undone.steps
    assert (await manager.commit(id_)).state == "committed"


async def test_a_guard_and_a_start_are_refusals(rig: Rig, manager: Manager) -> None:
    rig.guards.raise_guard(VM, "win11", uuid4(), "snapshot")
    plan = await foreseen(rig, manager, story.snapshot_request())
    assert [one.code for one in plan.refusals] == ["domain-busy"]
    assert [step.action for step in (await Foresight(manager).release(VM)).steps] == ["drop-guard"]


async def test_a_host_file_is_judged_and_not_written(rig: Rig, manager: Manager) -> None:
    before = trace(rig.root)
    plan = await Foresight(manager).write_host_file(VM, "nvram", nvram(b"B"), None)
    actions = ["capture-host-file", "receive-host-file", "swap-host-file", "remove-file", "remove-file"]
    assert [step.action for step in plan.steps] == actions
    assert trace(rig.root) == before
    with pytest.raises(HostFileDamaged, match="damaged"):
        await Foresight(manager).write_host_file(VM, "nvram", b"not a variable store", None)


async def test_a_writer_of_the_image_is_seen(rig: Rig, manager: Manager) -> None:
    with qemu_writes(rig.top("vda")):
        plan = await foreseen(rig, manager, story.snapshot_request())
    assert [(one.code, one.facts["target"]) for one in plan.refusals] == [("image-in-use", "vda")]


@contextmanager
def qemu_writes(path: Path) -> Iterator[None]:
    """Hold the lock on an image that a QEMU which writes to it holds."""
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0))
    yield
    os.close(descriptor)
