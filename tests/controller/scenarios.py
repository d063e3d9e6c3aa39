"""One scenario at least for each kind of operation: what is there before, and the operation that faults strike.

A new kind needs one here (``tests/visits.py`` says so), and that is all: every fault is made to strike at every point
that its run passes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from agent.wire.base import Request, utc_now
from agent.wire.operation import Operation, OperationState
from agent.wire.retention import SetRetention
from agent.wire.upkeep import Leftover
from agent.wire.vm import Guard
from controller.models import BackupFile, Content, Record, Snapshot, VolumeSnapshot
from controller.operations import (
    backup_host_files,
    repair,
    restore_host_files,
    retention_apply,
    ungroup,
    verify,
    verify_all,
)
from controller.operations.clone import Target, WantedOfVm
from controller.store import contents, host_files, operations, retention
from tests.controller.travels import hand_out_whole, have_somewhere_to_go, move, take_in
from tests.controller.world import HOST, World

Act = Callable[[World], Awaitable[Operation]]


async def nothing(one: World) -> None:
    """Leave the state as every scenario has it."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """``prepare`` adds to a VM that stands on a snapshot ``first``; ``act`` asks for one operation of ``kind``."""

    kind: str
    act: Act
    prepare: Callable[[World], Awaitable[None]] = nothing
    #: Whether records and host agree only once it has succeeded.
    mends: bool = False
    #: Whether it is made of parts that stand for themselves: a snapshot to clone from, deletions that it asked for.
    parts_stand: bool = False
    #: Strike each point once, however often it comes: what it does again, other scenarios do.
    once: bool = False
    #: How it ends when nothing else happens to it.
    ends: OperationState = "succeeded"
    #: How else when its controller died in it: codes of errors, or states. A caller's stream, say, dies with it.
    may_end: frozenset[str] = frozenset()
    #: The points that it is there for, where others strike the rest: ``make test`` takes these alone.
    only: str | None = None

    def is_end(self, operation: Operation) -> bool:
        """Tell whether it may have ended like this when the controller died in it, and the host lived on."""
        how = operation.state if operation.error is None else operation.error.code
        return operation.state == self.ends or how in self.may_end

    async def begin(self, one: World) -> None:
        """Bring a fresh world to the moment before."""
        await one.snapshot(name="first")
        await self.prepare(one)
        one.vm.host_files = {"nvram": b"nvram since", "tpm": b"tpm since"}


async def of_the_fleet(one: World, kind: str, wanted: Request) -> Operation:
    """Run an operation that is about no one VM."""
    return await one.ended((await one.engine.submit(kind, wanted, lambda: (None, None))).uuid)


async def take(one: World) -> Operation:
    return await one.create(name="second")


async def take_slowly(one: World) -> Operation:
    one.agent.linger = 2  # libvirt is away for a moment, say: the host has decided and is not done
    return await one.create(name="second")


async def have_an_undo_point(one: World) -> None:
    assert (await one.revert(await one.named("first"))).state == "succeeded"


async def go_back(one: World) -> Operation:
    return await one.revert(await one.named("first"))


async def remove(one: World) -> Operation:
    return await one.delete(await one.named("first"))


async def leave_a_hidden_base(one: World) -> None:
    """Leave a hidden base with two children, so that it goes in the same operation as the sibling."""
    first = await one.named("first")
    await one.snapshot(name="second")
    assert (await one.revert(first, undo_point=False)).state == "succeeded"
    assert (await one.delete(first)).state == "succeeded"


async def remove_sibling(one: World) -> Operation:
    return await one.delete(await one.named("second"))


async def give_up_host_files(one: World) -> Operation:
    return await one.act("snapshot-ungroup", ungroup.Wanted(snapshot=await one.named("first")))


async def check_one(one: World) -> Operation:
    return await one.act("snapshot-verify", verify.Wanted(snapshot=await one.named("first")))


async def check_all(one: World) -> Operation:
    return await of_the_fleet(one, "fleet-verify", verify_all.Wanted())


async def leave_a_mess(one: World) -> None:
    """Leave a guard without a transaction, a file that an ended one had staged, a row of nobody's, a dirty mark."""
    one.vm.guard = Guard.example()
    staged: Any = {"kind": "staged", "transaction": None, "size_bytes": 1, "mtime": utc_now(), "removable": True}
    one.agent.leftovers = [Leftover(path="/nvram/.coldframe-old", **staged)]
    await one.sync()
    await one.db.run(host_files.note_started, one.vm.uuid, HOST, utc_now())
    await one.db.run(contents.put, contents.pack(b"nobody's"))


async def tidy(one: World) -> Operation:
    return await of_the_fleet(one, "fleet-repair", repair.Wanted())


async def clone_twice(one: World) -> Operation:
    return await one.clone(await one.named("first"), "a", "b", tpm="copy")


async def clone_as_it_stands(one: World) -> Operation:
    return await one.act("vm-clone", WantedOfVm(targets=[Target(name="a")]))


async def put_host_files_back(one: World) -> Operation:
    wanted = restore_host_files.Wanted(types=["nvram", "tpm"], snapshot=await one.named("first"))
    return await one.act("vm-restore-host-files", wanted)


async def have_too_many(one: World) -> None:
    """Leave a snapshot more than the policy keeps."""
    await one.snapshot(name="second")
    await one.db.run(retention.put, "last", SetRetention(vm=str(one.vm.uuid), keep_last=1))


async def thin_out(one: World) -> Operation:
    return await of_the_fleet(one, "retention-apply", retention_apply.Wanted(policy="last"))


async def read(one: World) -> Operation:
    return await one.sync()


async def hand_out(one: World) -> Operation:
    return await one.act("vm-backup-host-files", backup_host_files.Wanted(owners=[uuid4(), uuid4()]))


def refused(act: Act) -> Act:
    """Let the host refuse to commit, so that all is taken back."""

    async def refused_act(one: World) -> Operation:
        one.agent.refuse["POST /v1/transactions/{id}/commit"] = "storage-failed"
        return await act(one)

    return refused_act


async def take_under_a_lease_that_is_short(one: World) -> Operation:
    """Have the host give a file so slowly that the lease is renewed meanwhile."""
    held: list[int] = []

    async def hold(number: int, called: str) -> None:
        if called.startswith("GET /v1/transactions/{id}/host-files") and not held:
            held.append(number)
            await until(lambda: any(each.endswith("/renew") for each in one.agent.calls))

    one.agent.on_call = hold
    one.engine.limits = replace(one.engine.limits, patience=replace(one.engine.limits.patience, lease_s=0.03))
    return await one.create(name="second")


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something, and after a second no longer: whoever was to bring it about has died."""
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            while not is_so():
                await asyncio.sleep(0.001)


def given_up(kind: str, wanted: Request, call: str) -> Act:
    """Cancel an operation of the fleet while the first of its parts waits for the host's answer to ``call``."""

    async def give_up(one: World) -> Operation:
        over: list[bool] = []

        async def hold(_: int, called: str) -> None:
            if called == call:
                await until(lambda: bool(over))

        one.agent.on_call = hold
        try:
            queued = await one.engine.submit(kind, wanted, lambda: (None, None))
            await until(lambda: call in one.agent.calls)
            await one.engine.cancel(queued.uuid)
            ended = await one.ended(queued.uuid)
        finally:
            over.append(True)
        while await one.db.run(operations.open_count):
            await asyncio.sleep(0.001)
        return ended

    return give_up


async def clone_once(one: World) -> Operation:
    return await one.clone(await one.named("first"), "a")


async def read_what_is_torn(one: World) -> Operation:
    one.vm.broken = {"tpm": "it is torn"}
    return await one.sync()


async def be_older_than_a_deletion(one: World) -> None:
    """Put the records back that a deletion took away: those of what it deleted, and of what stood on that."""
    await one.snapshot(name="second")
    rows = await one.db.run(_rows)
    assert (await one.delete(await one.named("first"))).state == "succeeded"
    await one.db.run(_put_back, rows)


def _rows() -> dict[type[Record], list[Any]]:
    return {table: list(table.select().dicts()) for table in (Content, Snapshot, VolumeSnapshot, BackupFile)}


def _put_back(rows: dict[type[Record], list[Any]]) -> None:
    for table in reversed(rows):
        if table is not Content:  # host files hold some
            table.delete().where(True).execute()
    for table, found in rows.items():
        table.insert_many(found).on_conflict_ignore().execute()


SCENARIOS: dict[str, Scenario] = {
    "create": Scenario(kind="snapshot-create", act=take),
    "create-slowly": Scenario(kind="snapshot-create", act=take_slowly),
    "revert": Scenario(kind="snapshot-revert", prepare=have_an_undo_point, act=go_back),
    "delete": Scenario(kind="snapshot-delete", act=remove),
    "delete-hidden": Scenario(kind="snapshot-delete", prepare=leave_a_hidden_base, act=remove_sibling),
    "clone": Scenario(kind="snapshot-clone", act=clone_twice),
    "clone-vm": Scenario(kind="vm-clone", parts_stand=True, act=clone_as_it_stands),
    "restore": Scenario(kind="vm-restore-host-files", act=put_host_files_back),
    "retention": Scenario(kind="retention-apply", once=True, parts_stand=True, prepare=have_too_many, act=thin_out),
    "ungroup": Scenario(kind="snapshot-ungroup", act=give_up_host_files),
    "verify": Scenario(kind="snapshot-verify", act=check_one),
    "verify-all": Scenario(kind="fleet-verify", once=True, act=check_all),
    "repair": Scenario(kind="fleet-repair", mends=True, once=True, prepare=leave_a_mess, act=tidy),
    "sync": Scenario(kind="vm-sync", act=read),
    "create-refused": Scenario(kind="snapshot-create", ends="failed", act=refused(take)),
    "revert-refused": Scenario(kind="snapshot-revert", ends="failed", act=refused(go_back)),
    "clone-refused": Scenario(kind="snapshot-clone", ends="failed", act=refused(clone_once)),
    "sync-torn": Scenario(kind="vm-sync", once=True, act=read_what_is_torn),
    "repair-older": Scenario(
        kind="fleet-repair", mends=True, once=True, parts_stand=True, prepare=be_older_than_a_deletion, act=tidy
    ),
    "restore-refused": Scenario(
        kind="vm-restore-host-files", ends="failed", act=refused(put_host_files_back), only="remove_owner"
    ),
    "create-renewed": Scenario(
        kind="snapshot-create", once=True, act=take_under_a_lease_that_is_short, only="message renew"
    ),
    "import-refused": Scenario(kind="snapshot-import", ends="failed", act=refused(take_in), only="_undone"),
    "export": Scenario(
        kind="snapshot-export",
        act=hand_out_whole,
        may_end=frozenset({"transfer-broken"}),
        only="message (put_transaction|images|read_image|abort)|step",
    ),
    "import": Scenario(kind="snapshot-import", act=take_in, may_end=frozenset({"transfer-broken"})),
    # A host that was not told to commit may have let the VM start: what was prepared is given up, not committed later.
    "place": Scenario(
        kind="vm-place", prepare=have_somewhere_to_go, act=move, may_end=frozenset({"transaction-aborted"})
    ),
    "verify-all-cancelled": Scenario(
        kind="fleet-verify",
        once=True,
        ends="cancelled",
        may_end=frozenset({"succeeded"}),
        only="_cancel",
        act=given_up("fleet-verify", verify_all.Wanted(), "POST /v1/images/check"),
    ),
    "retention-cancelled": Scenario(
        kind="retention-apply",
        once=True,
        parts_stand=True,
        prepare=have_too_many,
        ends="cancelled",
        may_end=frozenset({"succeeded"}),
        only="_withdraw",
        act=given_up("retention-apply", retention_apply.Wanted(policy="last"), "PUT /v1/transactions/{id}"),
    ),
    "backup": Scenario(kind="vm-backup-host-files", act=hand_out),
}
