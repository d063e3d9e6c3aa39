"""Files that VMs of several hosts stand on: what one host merges or removes, another one may be using."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import msgspec
import pytest

from agent.wire.base import utc_now
from agent.wire.transaction import DeleteRequest
from agent.wire.upkeep import Leftover
from controller.doctor import examine
from controller.errors import DisksNotRemoved
from controller.forgetting import remove_disks
from controller.operations import place, snapshot_create
from controller.store import bases, snapshots, vms
from tests.controller.databases import Databases
from tests.controller.fake_machine import FakeFile, FakeVm
from tests.controller.operations.test_place import Two, two
from tests.controller.world import HOST, OTHER

HOUR = timedelta(hours=1)
Hide = Callable[[Two, FakeVm], Awaitable[None]]


@pytest.fixture
async def one(databases: Databases) -> AsyncIterator[Two]:
    async with two(databases) as made:
        yield made


async def move(one: Two, vm: UUID) -> None:
    operation = await one.engine.submit("vm-place", place.Wanted(host=OTHER), lambda: (vm, OTHER), None)
    assert (await one.ended(operation.uuid)).state == "succeeded"


async def clone_on_other(one: Two, snapshot: UUID) -> FakeVm:
    made = await one.clone(snapshot, "clone")
    uuid = UUID(made.result["clones"][0]["vm"])
    await move(one, uuid)
    return one.other.vms[uuid]


def doomed(one: Two) -> set[str]:
    """Return every file that a host was asked to merge away."""
    asked = [known.request for agent in (one.agent, one.other) for known in agent.transactions.values()]
    return {volume.path for each in asked if isinstance(each, DeleteRequest) for volume in each.volumes}


async def files_of(one: Two, snapshot: UUID) -> dict[str, str]:
    return {volume.target: volume.path for volume in (await one.db.run(snapshots.group, snapshot)).volumes}


async def nothing(one: Two, made: FakeVm) -> None:
    """Leave the other host as it is."""


async def away(one: Two, made: FakeVm) -> None:
    """Let the other host not answer."""
    one.other.dead = True


async def unread(one: Two, made: FakeVm) -> None:
    """Let the other host lose its mount, look at it, and lose the host."""
    one.other.files = {}
    await one.look()
    one.other.dead = True


@pytest.mark.case("D3")
@pytest.mark.parametrize("hide", [nothing, away, unread])
async def test_what_a_clone_of_another_host_stands_on_is_kept_whether_that_host_answers_or_not(
    one: Two, hide: Hide
) -> None:
    first, second = await one.snapshot(), await one.snapshot()
    below, frozen = await files_of(one, first), await files_of(one, second)
    made = await clone_on_other(one, second)
    chains = {top: one.agent.chain(top) for top in made.tops.values()}
    before = {path: one.agent.fingerprint(path) for chain in chains.values() for path in chain}
    await hide(one, made)
    for snapshot in (first, second):  # the lower one too: the clone reads through its file
        done = await one.delete(snapshot)
        assert (done.state, set(done.result["hidden"])) == ("succeeded", {"vda", "vdb"})
    assert doomed(one) == set()
    assert {top: one.agent.chain(top) for top in made.tops.values()} == chains
    assert {path: one.agent.fingerprint(path) for path in before} == before
    assert {row.path for row in await one.db.run(bases.hidden, HOST)} == {*below.values(), *frozen.values()}


@pytest.mark.case("D3")
async def test_a_source_that_was_moved_keeps_what_the_clone_left_behind_stands_on(one: Two) -> None:
    snapshot = await one.snapshot()
    frozen = await files_of(one, snapshot)
    made = UUID((await one.clone(snapshot, "clone", tpm="copy")).result["clones"][0]["vm"])
    assert (await one.place()).state == "succeeded"
    done = await one.delete(snapshot)
    assert (done.state, set(done.result["hidden"])) == ("succeeded", {"vda", "vdb"})
    assert doomed(one) == set()
    assert {one.agent.files[top].backing for top in one.agent.vms[made].tops.values()} == set(frozen.values())


async def test_an_administrators_vm_of_another_host_is_seen_before_the_records_show_it(one: Two) -> None:
    snapshot = await one.snapshot()
    frozen = await files_of(one, snapshot)
    one.agent.files["/elsewhere/between.qcow2"] = FakeFile(backing=frozen["vda"])
    by_hand = one.other.add_vm("by-hand", disks=("vda",))
    one.other.files[by_hand.tops["vda"]].backing = "/elsewhere/between.qcow2"
    done = await one.delete(snapshot)
    assert (done.state, done.result["hidden"]) == ("succeeded", ["vda"])
    assert doomed(one) == {frozen["vdb"]}


async def test_a_host_that_hangs_up_on_us_holds_no_deletion_up_and_its_last_inventory_counts(one: Two) -> None:
    snapshot = await one.snapshot()
    one.other.dead = True
    done = await one.delete(snapshot)
    assert (done.state, done.result["hidden"]) == ("succeeded", [])


async def test_a_kept_file_goes_once_no_host_has_a_vm_on_it(one: Two) -> None:
    made = await clone_on_other(one, await one.snapshot())
    first = (await one.tree())[0].uuid
    assert (await one.delete(first)).result["hidden"] == ["vda", "vdb"]
    del one.other.vms[made.uuid]
    for top in made.tops.values():
        del one.agent.files[top]
    await one.look()
    await one.db.run(vms.forget, made.uuid)
    assert (await one.delete(await one.snapshot())).state == "succeeded"
    assert await one.db.run(bases.hidden, HOST) == []


@pytest.mark.case("D9")
async def test_the_disks_of_a_forgotten_vm_stay_while_a_vm_of_another_host_reads_them(one: Two) -> None:
    made = await clone_on_other(one, await one.snapshot())
    del one.agent.vms[one.vm.uuid]
    await one.look()
    before = dict(one.agent.files)
    one.other.dead = True
    with pytest.raises(DisksNotRemoved, match=f"{made.uuid} on host {OTHER}"):
        await remove_disks(one.db, one.hosts, one.vm.uuid)
    assert one.agent.files == before
    assert "POST /v1/images/remove" not in one.agent.calls


async def test_a_revert_without_an_undo_point_keeps_the_top_that_another_host_reads(one: Two) -> None:
    snapshot = await one.snapshot()
    top = one.vm.tops["vda"]
    reader = one.other.add_vm("reader", disks=("vda",))
    one.other.files[reader.tops["vda"]].backing = top
    assert (await one.revert(snapshot, undo_point=False)).state == "succeeded"
    asked = [known.request for known in one.agent.transactions.values() if known.view.kind == "revert"]
    assert top in asked[0].held  # type: ignore[union-attr]  # it is a revert's


async def test_what_another_host_has_put_aside_is_no_leftover(one: Two) -> None:
    await one.snapshot(host_files="none")
    (known,) = one.agent.transactions.values()
    view = msgspec.structs.replace(known.view, id=uuid4(), state="prepared", lease_expires_at=utc_now() + HOUR)
    one.other.transactions[view.id] = replace(known, view=view)
    path = "/images/.coldframe-of-another"
    facts = {"kind": "staged", "size_bytes": 1, "mtime": utc_now(), "removable": True}
    one.agent.leftovers = [Leftover(path=path, transaction=view.id, **facts)]  # type: ignore[arg-type]  # by name
    for one.other.dead in (False, True):
        assert "staged-leftover" not in {found.code for found in await examine.examine(one.db, one.hosts)}
    one.other.dead = False
    del one.other.transactions[view.id]
    assert "staged-leftover" in {found.code for found in await examine.examine(one.db, one.hosts)}


async def test_a_hosts_limit_holds_up_no_other_host(one: Two) -> None:
    await one.restart(per_host=1)
    far = one.other.add_vm("far", disks=("vda",))
    await one.look()
    opened, reached = asyncio.Event(), asyncio.Event()

    async def wait(_: int, name: str) -> None:
        if name.startswith("PUT"):
            reached.set()
            await opened.wait()

    one.agent.on_call = wait
    near = await one.submit("snapshot-create", snapshot_create.Wanted())
    await reached.wait()
    other = await one.engine.submit("snapshot-create", snapshot_create.Wanted(), lambda: (far.uuid, OTHER), None)
    assert (await one.ended(other.uuid)).state == "succeeded"
    opened.set()
    assert (await one.ended(near.uuid)).state == "succeeded"
