"""An enemy who owns the directories swaps what is in them at a named point of the work, or all the while.

Whatever he swaps, each transaction ends with an error of ours or with success on the right files, and what lies outside
the allowed directories is neither read into an image nor written, given away or removed.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from agent.transactions.manager import Manager
from agent.web.errors import Error
from agent.wire.transaction import DeleteRequest, Transaction
from tests.agent.transactions import story
from tests.agent.transactions.rig import DISK_BYTES, Rig, nvram, permall

NOBODY = 65_534
CANARY = b"canary of somebody else " * 4_000
Work = Callable[[Manager], Awaitable[object]]


class Tenant(Rig):
    """A host on which somebody owns the directory of a VM's images, below the allowed one."""

    def __init__(self, root: Path, disks: int = 2) -> None:
        super().__init__(root, disks)
        self.images = root / "images" / "tenant"
        self.outside = root.parent / "outside"

    def fingerprints(self) -> dict[str, tuple[object, ...]]:
        """Say all of what is outside that a change would show in."""
        found: dict[str, tuple[object, ...]] = {}
        for path in sorted(self.outside.rglob("*")):
            facts = path.lstat()
            data = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (facts.st_ino, facts.st_uid, facts.st_mode, facts.st_mtime_ns, facts.st_nlink, data)
        return found

    def make_outside(self) -> None:
        """Put files of somebody else under all names that the work uses, so that it could go on with them."""
        images = self.outside / "images"
        images.mkdir(parents=True)
        for path in self.images.iterdir():
            shutil.copy(path, images / path.name)
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 0x63 1M 1M", images / path.name], check=True)
        (self.outside / "secret").write_bytes(CANARY)
        (self.outside / "nvram").mkdir()
        (self.outside / "nvram" / self.nvram.name).write_bytes(nvram(b"c"))
        self._make_evil()
        state = self.outside / "swtpm" / self.tpm.name / "tpm2"
        state.mkdir(parents=True)
        (state / "tpm2-00.permall").write_bytes(permall(b"c"))

    def _make_evil(self) -> None:
        """Make an image that asks for somebody else's file as its backing file, and one as the place of its data."""
        secret, root = self.outside / "secret", self.outside.parent
        create = ["qemu-img", "create", "-q", "-f", "qcow2"]
        size = str(DISK_BYTES)
        subprocess.run([*create, "-u", "-b", secret, "-F", "raw", root / "backing", size], check=True)
        harmless = root / "OUTSIDE" / "secret"  # a name of the same length, since qemu-img truncates what it names
        harmless.parent.mkdir()
        options = f"data_file={harmless},data_file_raw=on"
        subprocess.run([*create, "-o", options, root / "data", size], check=True)
        evil = (root / "data").read_bytes()
        (root / "data").write_bytes(evil.replace(str(harmless).encode(), str(secret).encode()))


class Enemy:
    """Swaps something at one point of the work, by name or by its position, and can take that back."""

    def __init__(self, rig: Tenant, what: str, at: int | str) -> None:
        self.rig, self.what, self.at = rig, what, at
        self.points: list[str] = []
        self.struck: str | None = None
        self._undo: Callable[[], None] = lambda: None

    def __call__(self, point: str) -> None:
        self.points.append(point)
        if self.at in (point, len(self.points) - 1):
            self.struck = point
            self.strike()

    def strike(self) -> None:
        rig = self.rig
        directories = {"images": rig.images, "nvram": rig.nvram.parent, "swtpm": rig.tpm.parent}
        if self.what in directories:
            self._swap_for_link(directories[self.what], rig.outside / self.what)
            return
        newest = max(rig.images.glob("vda*"), key=lambda path: path.stat().st_mtime_ns)
        if self.what == "file":
            self._swap_for_link(newest, rig.outside / "secret")
        else:
            shutil.copy(rig.outside.parent / self.what, newest.with_name("evil"))
            newest.with_name("evil").replace(newest)

    def _swap_for_link(self, path: Path, target: Path) -> None:
        aside = path.with_name(path.name + ".aside")
        path.rename(aside)
        path.symlink_to(target)
        os.lchown(path, NOBODY, NOBODY)

        def undo() -> None:
            path.unlink(missing_ok=True)
            aside.rename(path)

        self._undo = undo

    def take_back(self) -> None:
        """Put back what was swapped, so that the work can come to its end."""
        self._undo()


async def prepared(rig: Tenant, kind: str) -> Work:
    """Bring the host to where work of a kind can begin; return that work."""
    manager = rig.manager()
    if kind == "snapshot":
        return story.snapshot
    if kind == "delete":  # one disk is committed down, the other's child is rebased
        rig.write_disk("vda", 9, at="1M", length="2M")
    taken, host_files = await story.snapshot(manager)
    story.change_everything(rig, 0x61)
    if kind == "revert":
        return lambda manager: story.revert(manager, story.revert_request(taken, host_files), host_files)
    asked = story.delete_request(taken, {target: [str(rig.top(target))] for target in rig.targets})
    return lambda manager: delete(manager, asked)


async def delete(manager: Manager, asked: DeleteRequest) -> Transaction | None:
    """Delete; while a link is in the way it does not end, and goes on when it is gone."""
    id_ = uuid4()
    await manager.put(id_, asked)
    await manager.commit(id_)
    for _ in range(300):
        if manager.get(id_).ended_at is not None:
            return manager.get(id_)
        await asyncio.sleep(0.001)
    return None


class Battle:
    """One kind of work on one host, as often as an enemy likes."""

    def __init__(self, rig: Tenant, work: Work) -> None:
        self.rig, self.work = rig, work
        self.before = rig.contents()
        shutil.copytree(rig.root, self._copy, symlinks=True)

    @property
    def _copy(self) -> Path:
        return self.rig.root.parent / "copy"

    def again(self) -> None:
        """Bring everything back to before the work, times of files included."""
        shutil.rmtree(self.rig.root)
        shutil.copytree(self._copy, self.rig.root, symlinks=True)

    async def points(self) -> int:
        """Count the points that the work passes without an enemy."""
        quiet = Enemy(self.rig, "nothing", -1)
        await self.work(self.rig.manager(quiet))
        self.after = self.rig.contents()
        self.again()
        return len(quiet.points)

    async def fight(self, what: str, at: int | str) -> str:
        """Strike once; hold that all is well, and return how the work ended."""
        rig, enemy = self.rig, Enemy(self.rig, what, at)
        outside = rig.fingerprints()
        try:
            found = await self.work(rig.manager(enemy))
            error = found.error if isinstance(found, Transaction) else None
            ended = "waits" if found is None else error.code if error else "done"
        except Error as err:
            ended = err.code
        assert enemy.struck is not None, at
        assert ended != Error.code, (what, enemy.struck)
        assert rig.fingerprints() == outside, (what, enemy.struck, ended)
        enemy.take_back()
        await self._recover()
        assert rig.fingerprints() == outside, (what, enemy.struck, ended)
        assert rig.guards.all() == {}, (what, enemy.struck, ended)
        self._hold_nothing_was_copied(what)
        if what in {"images", "nvram", "swtpm"}:
            assert rig.contents() in (self.before, self.after), (what, enemy.struck, ended)
        self.again()
        return ended

    async def _recover(self) -> None:
        with suppress(Error):
            await self.rig.manager().recover()
        manager = self.rig.manager()
        await manager.recover()
        for _ in range(2_000):
            if all(one.ended_at is not None for one in manager.all()):
                return
            await asyncio.sleep(0.001)
        raise AssertionError([(one.kind, one.state, one.error) for one in manager.all()])

    def _hold_nothing_was_copied(self, what: str) -> None:
        for path in (path for path in self.rig.root.rglob("*") if path.is_file() and not path.is_symlink()):
            data = path.read_bytes()
            assert CANARY[:64] not in data, (what, path)
            assert what != "images" or b"c" * 4096 not in data, (what, path)


WHAT = ("images", "nvram", "swtpm", "file", "backing", "data")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Tenant]:
    return Tenant(tmp_path / "host").build()  # type: ignore[return-value]


async def battle(rig: Tenant, kind: str) -> Battle:
    work = await prepared(rig, kind)
    rig.make_outside()
    return Battle(rig, work)


#: Where most could be reached if names were followed: right before something is made, moved, given away or removed.
WORST = {
    "snapshot": [
        ("images", "before create-overlay vda"),
        ("backing", "after create-overlay vda"),
        ("data", "after create-overlay vda"),
        ("file", "before switch-disks vda vdb"),
    ],
    "revert": [
        ("images", "before create-overlay vda"),
        ("nvram", "before receive nvram"),
        ("nvram", "before swap nvram"),
        ("swtpm", "before receive tpm"),
        ("swtpm", "before swap tpm"),
    ],
    "delete": [
        ("images", "after rebase vdb"),
        ("images", "before replace vda"),
        ("images", "before remove frozen vdb"),
        ("file", "before commit vda"),
        ("backing", "before commit vda"),
        ("data", "before replace vda"),
    ],
}


@pytest.mark.case("S11")
@pytest.mark.parametrize("kind", WORST)
async def test_a_swap_at_the_worst_points_reaches_nothing_outside(rig: Tenant, kind: str) -> None:
    fought = await battle(rig, kind)
    await fought.points()
    ends = [await fought.fight(what, at) for what, at in WORST[kind]]
    assert set(ends) != {"done"}, ends


@pytest.mark.slow
@pytest.mark.case("S11")
@pytest.mark.parametrize("kind", WORST)
async def test_a_swap_at_every_point_reaches_nothing_outside(rig: Tenant, kind: str) -> None:
    fought = await battle(rig, kind)
    count = await fought.points()
    ends = [await fought.fight(what, at) for what in WHAT for at in range(count)]
    assert set(ends) != {"done"}, ends
