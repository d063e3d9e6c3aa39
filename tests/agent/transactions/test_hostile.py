"""What somebody who owns an image directory can do between the agent's look at it and its work."""

import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import QemuImgFailed
from agent.transactions.manager import Manager
from tests.agent.transactions import story
from tests.agent.transactions.rig import DISK_BYTES, Rig

SECRET = b"s" * 65_536


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def identity(path: Path) -> tuple[int, int, int, int, int]:
    facts = path.stat()
    return facts.st_ino, facts.st_uid, facts.st_gid, facts.st_mode, facts.st_mtime_ns


def overlay_on(below: Path, path: Path) -> Path:
    command = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        str(below),
        "-F",
        "raw",
        str(path),
        str(DISK_BYTES),
    ]
    subprocess.run(command, check=True)
    return path


@pytest.mark.case("S11")
async def test_frozen_file_that_comes_to_name_a_file_outside_is_not_copied_into_a_clone(
    rig: Rig, manager: Manager, secret: Path
) -> None:
    taken, host_files = await story.snapshot(manager)
    evil = overlay_on(secret, rig.root / "evil")

    def strike(point: str) -> None:
        if point == "before convert vda":
            Path(taken.volumes[0].path).write_bytes(evil.read_bytes())

    before = rig.files()
    with pytest.raises(QemuImgFailed, match="lies outside the allowed image directories"):
        await rig.manager(strike).put(uuid4(), story.clone_request(taken, host_files, mode="full"))
    assert (rig.files(), rig.guards.all()) == (before, {})
    assert not [path for path in rig.images.iterdir() if SECRET[:512] in path.read_bytes()]


@pytest.mark.case("S11")
@pytest.mark.parametrize("point", ["before create-overlay vda", "after create-overlay vda"])
async def test_link_in_the_place_of_an_overlay_gets_nothing_written_or_given_away(
    rig: Rig, secret: Path, point: str
) -> None:
    id_ = uuid4()
    overlay = rig.images / f"vda.cf-{id_}.vda.qcow2"

    def strike(reached: str) -> None:
        if reached == point:
            overlay.unlink(missing_ok=True)
            overlay.symlink_to(secret)

    facts, tops = identity(secret), [rig.top(target) for target in rig.targets]
    manager = rig.manager(strike)
    if point.startswith("before"):
        with pytest.raises(QemuImgFailed, match="the file exists"):
            await manager.put(id_, story.snapshot_request())
    else:
        await manager.put(id_, story.snapshot_request())
        await manager.abort(id_)
    assert [rig.top(target) for target in rig.targets] == tops
    assert (secret.read_bytes(), identity(secret)) == (SECRET, facts)
    assert rig.guards.all() == {}
