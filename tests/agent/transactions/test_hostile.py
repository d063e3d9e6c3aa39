"""What somebody who owns an image directory can do between the agent's look at it and its work."""

import os
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import ImageRefused, QemuImgFailed
from agent.transactions.manager import Manager
from agent.transactions.transfers import Transfers
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


def overlay_on(below: Path | str | None, path: Path) -> Path:
    named = ["-u", "-b", str(below), "-F", "raw"] if below else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *named, str(path), str(DISK_BYTES)], check=True)
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


@pytest.mark.case("S11")
@pytest.mark.parametrize(
    ("way", "other"),
    [
        *((way, other) for way in ("rebase", "commit") for other in ("another image", "a protocol", "no image")),
        ("commit", "nothing"),  # a child that was rebased from the root of its chain does stand on nothing
    ],
)
async def test_child_that_comes_to_stand_on_something_else_is_not_taken_for_merged(
    tmp_path: Path, way: str, other: str
) -> None:
    rig = Rig(tmp_path, disks=1).build()
    taken, _ = await story.snapshot(rig.manager())
    if way == "rebase":
        rig.write_disk("vda", 9, at="1M", length="2M")
    child, frozen = rig.top("vda"), Path(taken.volumes[0].path)
    named: dict[str, Path | str] = {"another image": rig.images / "another", "a protocol": "nbd:h:1"}
    new = overlay_on(named.get(other), rig.root / "new")
    overlay_on(None, rig.images / "another")
    if other == "no image":
        new.write_bytes(b"x" * 65_536)

    def strike(point: str) -> None:
        if point == f"before {way} vda":
            child.write_bytes(new.read_bytes())  # in the same file: its locks stay

    before = frozen.read_bytes()
    asked = story.delete_request(taken, {"vda": [str(child)]})
    done = await story.delete(rig.manager(strike), asked)
    assert done.error is not None
    assert (done.error.code, [one.done for one in done.outcomes]) == ("image-refused", [False])
    assert (done.outcomes[0].new_backing, done.outcomes[0].fingerprints) == (None, {})
    assert (frozen.read_bytes(), child.read_bytes()) == (before, new.read_bytes())


async def test_image_whose_name_went_to_another_file_is_not_written_to(rig: Rig, manager: Manager) -> None:
    taken, _ = await story.snapshot(manager)
    rig.write_disk("vda", 9, at="1M", length="2M")
    child, kept = rig.top("vda"), rig.root / "kept"

    def strike(point: str) -> None:
        if point == "before rebase vda":
            child.rename(kept)
            child.write_bytes(kept.read_bytes())

    asked = story.delete_request(taken, {target: [str(rig.top(target))] for target in rig.targets})
    done = await story.delete(rig.manager(strike), asked)
    assert done.error is not None
    assert "another file has taken its name" in (done.error.detail or "")
    assert child.read_bytes() == kept.read_bytes()
    assert all(Path(volume.path).exists() for volume in taken.volumes)


async def test_frozen_file_that_is_replaced_during_an_export_is_not_sent(rig: Rig, manager: Manager) -> None:
    taken, _ = await story.snapshot(manager)
    id_, transfers = uuid4(), Transfers(manager)
    await manager.put(id_, story.export_request(taken, flat=False))
    frozen = Path(taken.volumes[0].path)
    frozen.with_name("other").write_bytes(frozen.read_bytes())
    frozen.with_name("other").replace(frozen)
    with pytest.raises(ImageRefused, match="another file has taken its name"):
        await transfers.send(id_, "vda", 0)
    await manager.abort(id_)


@pytest.mark.parametrize("change", ["grows", "shrinks"])
async def test_frozen_file_that_changes_during_an_export_gives_no_more_than_was_announced(
    rig: Rig, manager: Manager, change: str
) -> None:
    taken, _ = await story.snapshot(manager)
    id_, transfers = uuid4(), Transfers(manager)
    await manager.put(id_, story.export_request(taken, flat=False))
    size, pieces = await transfers.send(id_, "vda", 0)
    os.truncate(taken.volumes[0].path, size * 2 if change == "grows" else size // 2)
    sent = sum([len(piece) async for piece in pieces])
    assert sent == (size if change == "grows" else size // 2)  # who receives counts, and refuses fewer
    await manager.abort(id_)
    assert rig.guards.all() == {}
