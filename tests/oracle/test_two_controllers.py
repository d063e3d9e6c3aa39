"""Two controllers by mistake, with a database each and both at one agent: the first one works, and loses nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agent.keeper import Keepers
from agent.wire.base import Request
from agent.wire.operation import Operation
from controller.db import Database
from controller.doctor import examine
from controller.errors import HostKept
from controller.hosts import Hosts
from controller.operations import revert, snapshot_create, snapshot_delete
from controller.operations.engine import Engine, Limits
from controller.operations.job import Patience
from controller.operations.kinds import KINDS
from controller.store import invariants, snapshots
from tests.controller.databases import SqliteFiles
from tests.controller.world import opened
from tests.oracle.house import HOST, House
from tests.oracle.reading import Reader
from tests.oracle.world import run


class Controller:
    """A controller without its HTTP."""

    def __init__(self, db: Database, hosts: Hosts, engine: Engine, vm: UUID) -> None:
        self.db, self.hosts, self.engine, self.vm = db, hosts, engine, vm

    async def do(self, kind: str, wanted: Request) -> Operation:
        operation = await self.engine.submit(kind, wanted, lambda: (self.vm, HOST))
        return await self.engine.wait(operation.uuid, 30)

    async def create(self, name: str) -> Operation:
        return await self.do("snapshot-create", snapshot_create.Wanted(name=name))

    async def taken(self, name: str) -> UUID:
        operation = await self.create(name)
        assert operation.state == "succeeded", operation.error
        return UUID(operation.result["snapshot"])

    async def revert(self, snapshot: UUID) -> Operation:
        return await self.do("snapshot-revert", revert.Wanted(snapshot=snapshot, undo_point=False))

    async def delete(self, snapshot: UUID) -> Operation:
        return await self.do("snapshot-delete", snapshot_delete.Wanted(snapshot=snapshot))

    async def volumes(self, snapshot: UUID) -> list[Path]:
        group = await self.db.run(snapshots.group, snapshot)
        return [Path(volume.path) for volume in group.volumes]

    async def findings(self) -> list[str]:
        """Return what the doctor says."""
        assert await self.db.run(invariants.orphans) == []
        return sorted({one.code for one in await examine.examine(self.db, self.hosts)})


class Stage:
    """One host with a VM, and controllers that have all enrolled it; one is awake at a time, as a process has one."""

    def __init__(self, house: House, root: Path) -> None:
        self.house, self.root, self.files = house, root, SqliteFiles(root)
        self.vm, self.reader = uuid4(), Reader()
        disk = house.images / "vm-vda.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", str(disk), "2M")
        house.define("vm", self.vm, {"vda": disk})

    @asynccontextmanager
    async def awake(self, name: str) -> AsyncIterator[Controller]:
        """Wake the controller of that name; what it knows is in its database."""
        limits = Limits(patience=Patience(poll_s=0.01))
        async with (
            opened(self.files, url=f"sqlite:///{self.root}/{name}.db") as (db, hosts),
            Engine(db, hosts, KINDS, limits) as engine,
        ):
            yield Controller(db, hosts, engine, self.vm)

    async def enrol(self, name: str) -> None:
        async with self.awake(name) as controller:
            await controller.hosts.add(self.house.enrolment())

    def write(self, byte: int) -> None:
        """Write to the VM's disk as its guest would."""
        run("qemu-io", "-f", "qcow2", "-c", f"write -q -P {byte} 0 64k", str(self.top))

    def give_up(self) -> None:
        """Do as ``coldframe-agent forget-controller`` does."""
        Keepers(self.house.state_dir).forget()

    @property
    def top(self) -> Path:
        return self.house.tops(self.vm)["vda"]

    async def reads(self, *paths: Path) -> list[str]:
        found = await self.reader.hashes(paths)
        return [found[path] for path in paths]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with House(tmp_path / "house", alone=True) as house:
        made = Stage(house, tmp_path)
        for name in ("one", "other"):
            await made.enrol(name)
        yield made


def require_refused(operation: Operation) -> None:
    assert operation.error is not None
    assert operation.error.code == "controller-refused"
    assert "forget-controller" in operation.error.detail


async def test_second_controller_is_refused_by_name_and_only_its_doctor_complains(stage: Stage) -> None:
    async with stage.awake("one") as one:
        first = await one.taken("first")
    async with stage.awake("other") as other:
        require_refused(await other.create("mine"))
        assert await other.findings() == ["host-kept", "snapshot-not-recorded"]
    async with stage.awake("one") as one:
        assert await one.findings() == []
        assert (await one.revert(first)).state == "succeeded"
        assert (await one.delete(first)).state == "succeeded"
    with pytest.raises(HostKept, match="forget-controller"):
        await stage.enrol("third")


async def test_snapshots_keep_their_bytes_when_the_host_goes_to_another_controller_and_back(stage: Stage) -> None:
    async with stage.awake("one") as one:
        stage.write(0x11)
        first = await one.taken("first")
        stage.write(0x22)
        second = await one.taken("second")
        assert (await one.revert(first)).state == "succeeded"  # no domain uses the second one's file now
        frozen = [*await one.volumes(first), *await one.volumes(second)]
    before = await stage.reads(*frozen)
    stage.give_up()
    async with stage.awake("other") as other:
        stage.write(0x33)
        theirs = await other.taken("theirs")
        assert (await other.revert(theirs)).state == "succeeded"
        assert (await other.delete(theirs)).state == "succeeded"
        kept = await other.taken("kept")
        assert (await other.revert(kept)).state == "succeeded"
        assert "host-kept" not in await other.findings()
        frozen += await other.volumes(kept)
    held = await stage.reads(*frozen)
    assert held[:2] == before
    async with stage.awake("one") as one:
        for refused in (one.create("mine"), one.revert(second), one.delete(first)):
            require_refused(await refused)
        assert "host-kept" in await one.findings()
        stage.give_up()
        operation = await one.delete(first)  # the other one's file stands on it
        assert operation.error is not None
        assert "belongs to no snapshot of this VM" in operation.error.detail
        for snapshot, wanted in zip((first, second), before, strict=True):
            assert (await one.revert(snapshot)).state == "succeeded"
            assert await stage.reads(stage.top) == [wanted]
    assert await stage.reads(*frozen) == held
