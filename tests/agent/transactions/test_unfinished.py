"""Work whose storage failed in the middle, and what the agent goes on with by itself once that is mended."""

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from agent.errors import StorageFailed
from agent.transactions.manager import Manager
from agent.wire.transaction import CloneRequest, DeleteRequest
from tests.agent.transactions import story
from tests.agent.transactions.rig import VM, Rig
from tests.agent.transactions.test_kill import build


def failing(points: Collection[str]) -> Callable[[str], None]:
    """Return a checkpoint at which storage fails, for as long as the points are in the collection."""

    def checkpoint(name: str) -> None:
        if name in points:
            raise StorageFailed(action="touching", path="/images", reason="Input/output error")

    return checkpoint


async def deleted(manager: Manager, request: bytes) -> None:
    id_ = uuid4()
    await manager.put(id_, msgspec.json.decode(request, type=DeleteRequest))
    await manager.commit(id_)
    while manager.get(id_).error is None or manager.running(id_).lock.locked():
        await asyncio.sleep(0.01)


@pytest.mark.case("D6")
@pytest.mark.case("F5")
async def test_a_deletion_that_cannot_put_back_a_frozen_file_has_not_ended_and_goes_on(tmp_path: Path) -> None:
    rig, (request, _) = await build(tmp_path, "delete-mixed")
    old, before = rig.contents(), rig.files()
    points = {"before commit vdb", "before undo set-aside frozen vda"}
    manager = rig.manager(failing(points))
    await deleted(manager, request)
    (item,) = manager.all()
    assert (item.state, item.error and item.error.code) == ("committing", "storage-failed")
    assert VM in rig.guards.all()
    points.clear()
    await manager.tick()
    (item,) = manager.all()
    assert (item.state, item.error) == ("committed", None)
    assert all(outcome.done for outcome in item.outcomes)
    assert rig.contents() == old
    assert len(before - rig.files()) == len(rig.targets)
    assert rig.guards.all() == {}


@pytest.mark.case("F5")
async def test_a_deletion_that_stopped_before_putting_back_is_put_back_once_that_works(tmp_path: Path) -> None:
    rig, (request, _) = await build(tmp_path, "delete-mixed")
    before = rig.files()
    points = {"before commit vdb", "before undo set-aside frozen vda"}
    manager = rig.manager(failing(points))
    await deleted(manager, request)
    points.remove("before undo set-aside frozen vda")
    await manager.tick()
    (item,) = manager.all()
    assert (item.state, item.error and item.error.code) == ("committed", "storage-failed")
    assert not any(outcome.done for outcome in item.outcomes)
    assert rig.files() == before


@pytest.mark.case("F5")
async def test_what_must_exist_at_the_next_start_is_noted_once_the_disk_takes_it(tmp_path: Path) -> None:
    rig, (request, host_files) = await build(tmp_path, "clone")
    manager = rig.manager()
    expected = rig.state_dir / "expected"
    aside = expected.rename(rig.state_dir / "elsewhere")
    expected.write_text("no directory")
    await story.clone(manager, msgspec.json.decode(request, type=CloneRequest), host_files)
    expected.unlink()
    aside.rename(expected)
    assert not (expected / str(story.CLONE)).exists()
    await manager.tick()
    assert (expected / str(story.CLONE)).exists()


def test_a_guard_that_could_not_be_raised_leaves_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path).build()
    rig.manager()
    id_ = uuid4()
    staged = rig.guards._staged(VM, id_)
    staged.write_text("half a guard")
    rig.guards.let_go(VM, id_)
    assert list(staged.parent.iterdir()) == []
