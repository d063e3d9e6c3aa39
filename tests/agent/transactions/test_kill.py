"""F1: the agent is killed at every point of every kind of transaction, and another one takes over.

The points are found by a run that is not killed: every journal record, every step of the plan, guard and undo. A
process forked from a clean server runs the transaction on real images and dies by its own SIGKILL at one point; then
recovery runs here and the host is looked over.
"""

import multiprocessing
import shutil
import signal
import subprocess
from multiprocessing.context import ForkServerContext
from pathlib import Path

import msgspec
import pytest

from agent.transactions.manager import Manager
from agent.wire.host_file import HostFileType
from agent.wire.transaction import Transaction
from tests.agent.transactions import story
from tests.agent.transactions.rig import VM, Rig
from tests.visits import Visit

Prepared = tuple[bytes, dict[HostFileType, bytes]]
KINDS = (
    *("snapshot", "revert", "bare-revert", "restore", "delete", "delete-down", "delete-mixed"),
    *("clone", "full-clone", "export", "import"),
)
#: What leaves the domain alone and makes another one, or nothing.
NEW = ("clone", "full-clone", "export", "import")
#: Stories that are not named after their kind of transaction.
KINDS_OF = {"full-clone": "clone", "bare-revert": "revert"}
#: How much disks hold below: more than is above, so that their children are committed down and not rebased, or less,
#: so that a rebase has something to copy.
BELOW = {"delete-down": {"vda": "2M", "vdb": "2M"}, "delete-mixed": {"vda": "192k", "vdb": "2M"}}
#: How much of them was written after the first snapshot, beside what every disk has.
ABOVE = {"delete-down": "512k", "delete-mixed": "512k"}


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.agent.transactions.story"])
    return context


async def build(root: Path, kind: str) -> tuple[Rig, Prepared]:
    """Bring a host to the moment before the transaction, and give the request."""
    rig = Rig(root, disks=1 if kind in {"export", "import"} else 2).build()
    manager = rig.manager()
    if kind == "snapshot":
        return rig, (b"", {})
    for target, length in BELOW.get(kind, {}).items():
        rig.write_disk(target, 0x50, at="1M", length=length)
    taken, host_files = await story.snapshot(manager)
    story.change_everything(rig, 0x61)
    for target in rig.targets if kind in ABOVE else ():
        rig.write_disk(target, 0x62, at="3M", length=ABOVE[kind])
    if kind == "restore":
        rig.lose_host_files()
        return rig, (b"", host_files)
    if kind.endswith("revert"):
        gone: list[HostFileType] = ["tpm"] if kind == "bare-revert" else []  # to a moment before it had a TPM
        kept = {type_: data for type_, data in host_files.items() if type_ not in gone}
        return rig, (msgspec.json.encode(story.revert_request(taken, kept, remove=gone)), kept)
    if kind in {"export", "import"}:
        return rig, await archive(manager, kind, taken, host_files)
    if kind in NEW:
        asked = story.clone_request(taken, host_files, mode="full" if kind == "full-clone" else "linked")
        return rig, (msgspec.json.encode(asked), host_files)
    second, _ = await story.snapshot(manager)
    children = {volume.target: [volume.path] for volume in second.volumes}
    return rig, (msgspec.json.encode(story.delete_request(taken, children)), {})


class Moment:
    """A host right before a transaction. It is built once; ``again`` brings it back, on the same paths."""

    def __init__(self, rig: Rig, prepared: Prepared) -> None:
        self.rig, self.prepared = rig, prepared
        self.old, self.before = rig.contents(), rig.files()
        self._kept = rig.root.with_name(f"{rig.root.name}.kept")
        self._copy(rig.root, self._kept)

    def again(self) -> None:
        """Undo whatever happened since: every file has its bytes, owner and times of that moment."""
        shutil.rmtree(self.rig.root)
        self._copy(self._kept, self.rig.root)

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)


async def archive(manager: Manager, kind: str, taken: Transaction, host_files: dict[HostFileType, bytes]) -> Prepared:
    if kind == "export":
        return msgspec.json.encode(story.export_request(taken)), {}
    told, sent = await story.export(manager, story.export_request(taken, flat=False))
    changes = {"vm": story.CLONE, "name": "copy of win11", "renew": True}
    wanted = story.import_request(taken.domain_xml, told, host_files, **changes)
    images = {f"{target}.{position}": data for (target, position), data in sent.items()}
    return msgspec.json.encode((wanted, images)), host_files


async def points_of(tmp_path: Path, kind: str) -> list[str]:
    """Run a transaction unharmed and list the points that it passes."""
    rig, prepared = await build(tmp_path / "unharmed", kind)
    executioner = story.Executioner()
    await story.run(rig.manager(executioner), kind, *prepared)
    return executioner.points


def kill_at(processes: ForkServerContext, root: Path, kind: str, point: int, prepared: Prepared) -> int | None:
    process = processes.Process(target=story.victim, args=(root, kind, point, *prepared))
    process.start()
    process.join(60)
    return process.exitcode


async def settle(rig: Rig) -> Manager:
    manager = rig.manager()
    await manager.recover()
    return manager


@pytest.mark.case("F1")
@pytest.mark.case("D6")
@pytest.mark.parametrize("kind", KINDS)
async def test_agent_killed_at_every_point_leaves_the_old_state_or_the_new(
    tmp_path: Path, processes: ForkServerContext, kind: str, visit: Visit
) -> None:
    points = await points_of(tmp_path, kind)
    assert len(points) > 12
    moment = Moment(*await build(tmp_path / "killed", kind))
    for number, name in enumerate(points):
        moment.again()
        assert kill_at(processes, moment.rig.root, kind, number, moment.prepared) == -signal.SIGKILL, name
        await settle(moment.rig)
        check(moment.rig, kind, name, moment.old, moment.before)
        visit(name)
    visit(f"transaction {KINDS_OF.get(kind, kind.partition('-')[0])}")


def check(rig: Rig, kind: str, point: str, old: dict[str, str], before: set[str]) -> None:
    """Hold that nothing is in between: contents, files, guards and definition are of one state or the other."""
    assert rig.guards.all() == {}, point
    new = rig.contents()
    if kind in NEW:
        assert new == old, point
        check_new(rig, point, rig.files() - before)
        return
    added = {path for path in rig.files() - before if path.startswith("images/")}
    own = {"nvram/win11_VARS.fd", f"swtpm/{VM}/tpm2/tpm2-00.permall"}  # put back where they were lost
    strays = [path for path in rig.files() - before - own if not path.startswith("images/")]
    assert not strays, f"{point}: {strays}"
    assert not [path for path in rig.files() if ".coldframe-" in path], point
    if kind.endswith("revert"):
        switched = len(added) == len(rig.targets)
        assert switched or not added, point
        assert all((new[part] == old[part]) is not switched for part in old), point
    elif kind == "restore":
        host_files = ("nvram", "tpm")
        assert {part: new[part] for part in rig.targets} == {part: old[part] for part in rig.targets}, point
        assert len({new[part] == old[part] for part in host_files}) == 1, point
        assert not added, point
    else:
        assert new == old, point
        gone = before - rig.files()
        assert len(added) in ((0, len(rig.targets)) if kind == "snapshot" else (0,)), point
        assert len(gone) in ((0, len(rig.targets)) if kind.startswith("delete") else (0,)), point
    assert {rig.top(target).exists() for target in rig.targets} == {True}, point


def check_new(rig: Rig, point: str, added: set[str]) -> None:
    """Hold that a new domain is there with all that belongs to it, or that nothing of it is."""
    assert not [path for path in added if ".coldframe-" in path], point
    made = f"libvirt/{story.CLONE}.xml" in added
    assert made or not added, point
    if made:
        assert {path.partition("/")[0] for path in added} == {"images", "libvirt", "nvram", "swtpm"}, point
        assert all(rig.top(target, story.CLONE).exists() for target in rig.targets), point


@pytest.mark.case("F1")
@pytest.mark.parametrize("kind", ["revert", "bare-revert", "clone", "import"])
async def test_agent_killed_while_it_takes_a_commit_back_leaves_the_old_state(
    tmp_path: Path, processes: ForkServerContext, kind: str, visit: Visit
) -> None:
    rig, prepared = await build(tmp_path / "unharmed", kind)
    moment = Moment(*await build(tmp_path / "killed", kind))
    for number, name in await taken_back(rig, kind, prepared, "before journal rollback"):
        moment.again()
        assert fail_and_kill_at(processes, moment.rig.root, kind, number, moment.prepared) == -signal.SIGKILL, name
        await settle(moment.rig)
        check(moment.rig, kind, name, moment.old, moment.before)
        if name != "before journal rollback":  # until that record the commit stands, and libvirt takes it by then
            assert moment.rig.contents() == moment.old, name
            assert moment.rig.files() == moment.before, name
        visit(name)


async def taken_back(rig: Rig, kind: str, prepared: Prepared, since: str) -> list[tuple[int, str]]:
    """Let a transaction fail at its last step, and return its points, numbered, from ``since`` on."""
    executioner = story.Executioner()
    await story.fail(rig, executioner, kind, *prepared)
    return list(enumerate(executioner.points))[executioner.points.index(since) :]


def fail_and_kill_at(processes: ForkServerContext, root: Path, kind: str, point: int, prepared: Prepared) -> int | None:
    process = processes.Process(target=story.failing_victim, args=(root, kind, point, *prepared))
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.case("F1")
@pytest.mark.case("D2")
async def test_agent_killed_while_it_puts_frozen_files_back_deletes_them_all_the_next_time(
    tmp_path: Path, processes: ForkServerContext, visit: Visit
) -> None:
    rig, prepared = await build(tmp_path / "unharmed", "delete-mixed")
    points = await taken_back(rig, "delete-mixed", prepared, "before commit vdb")
    moment = Moment(*await build(tmp_path / "killed", "delete-mixed"))
    for number, name in points:
        moment.again()
        killed = fail_and_kill_at(processes, moment.rig.root, "delete-mixed", number, moment.prepared)
        assert killed == -signal.SIGKILL, name
        await settle(moment.rig)
        check(moment.rig, "delete-mixed", name, moment.old, moment.before)
        # What was told as failed leaves both frozen files; until then the commit stands, and this time it can be done.
        told = name in {"after journal ended", "before drop-guard", "after drop-guard"}
        assert (moment.rig.files() >= moment.before) is told, name
        visit(name)


@pytest.mark.case("F1")
async def test_agent_killed_in_its_own_recovery_recovers_the_next_time(
    tmp_path: Path, processes: ForkServerContext
) -> None:
    for number, checkpoint in enumerate(["before journal ended", "before drop-guard", "before swap tpm"]):
        rig, prepared = await build(tmp_path / str(number), "revert")
        old, before = rig.contents(), rig.files()
        points = await points_of(tmp_path / f"p{number}", "revert")
        kill_at(processes, rig.root, "revert", points.index("after journal commit"), prepared)
        process = processes.Process(target=story.recovering_victim, args=(rig.root, checkpoint))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        await settle(rig)
        check(rig, "revert", checkpoint, old, before)


@pytest.mark.parametrize("cut", [1, 20, 200])
async def test_torn_last_record_of_the_journal_counts_as_not_written(
    tmp_path: Path, processes: ForkServerContext, cut: int
) -> None:
    rig, prepared = await build(tmp_path / "torn", "snapshot")
    old, before = rig.contents(), rig.files()
    points = await points_of(tmp_path, "snapshot")
    kill_at(processes, rig.root, "snapshot", points.index("after journal prepared"), prepared)
    (journal,) = (rig.state_dir / "journal").glob("*.jsonl")
    journal.write_bytes(journal.read_bytes()[:-cut])
    await settle(rig)
    check(rig, "snapshot", f"torn by {cut}", old, before)
    assert rig.files() == before


async def test_guard_of_an_ended_transaction_is_dropped_at_start(tmp_path: Path, processes: ForkServerContext) -> None:
    rig, prepared = await build(tmp_path / "ended", "snapshot")
    points = await points_of(tmp_path, "snapshot")
    kill_at(processes, rig.root, "snapshot", points.index("after journal ended"), prepared)
    rig.manager()
    assert VM in rig.guards.all()
    await settle(rig)
    assert rig.guards.all() == {}


async def test_snapshot_whose_domain_ran_in_between_is_undone_and_not_committed(
    tmp_path: Path, processes: ForkServerContext
) -> None:
    rig, prepared = await build(tmp_path / "overtaken", "snapshot")
    points = await points_of(tmp_path, "snapshot")
    kill_at(processes, rig.root, "snapshot", points.index("after journal commit"), prepared)
    rig.write_disk("vda", 0x77)  # the hook was removed, and the guest wrote
    seen = rig.contents()
    manager = await settle(rig)
    assert [item.state for item in manager.all()] == ["aborted"]
    assert rig.contents() == seen


async def test_guard_that_cannot_be_dropped_at_start_keeps_nobody_else_and_goes_later(
    tmp_path: Path, processes: ForkServerContext
) -> None:
    rig, prepared = await build(tmp_path / "ended", "snapshot")
    points = await points_of(tmp_path, "snapshot")
    kill_at(processes, rig.root, "snapshot", points.index("after journal ended"), prepared)
    lock = rig.state_dir / "hook.lock"
    lock.unlink()
    lock.mkdir()
    manager = await settle(rig)
    assert VM in rig.guards.all()
    lock.rmdir()
    await manager.tick()
    assert rig.guards.all() == {}
