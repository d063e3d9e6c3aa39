"""Merging a snapshot away, on real images, NVRAM, TPM state, guards and journal; libvirt is played."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import ImageInUse, ImageRefused, TransactionEnded
from agent.host import files, images, qcow2, qemu_img
from agent.transactions.manager import Manager
from agent.wire.transaction import DeleteRequest, Transaction
from tests.agent.transactions import story
from tests.agent.transactions.rig import DISK_BYTES, VM, Rig, raw_sha256


async def deletable(rig: Rig, manager: Manager) -> tuple[Transaction, Transaction]:
    first, _ = await story.snapshot(manager)
    story.change_everything(rig, 0x61)
    second, _ = await story.snapshot(manager)
    story.change_everything(rig, 0x62)
    return first, second


@pytest.mark.case("D1")
async def test_delete_merges_each_frozen_file_into_its_one_child(rig: Rig, manager: Manager) -> None:
    first, second = await deletable(rig, manager)
    before = rig.contents()
    children = {volume.target: [volume.path] for volume in second.volumes}
    done = await story.delete(manager, story.delete_request(first, children))
    assert [outcome.done for outcome in done.outcomes] == [True, True]
    assert rig.contents() == before
    assert not [volume.path for volume in first.volumes if Path(volume.path).exists()]


async def test_delete_of_the_snapshot_that_the_domain_stands_on_keeps_its_data(rig: Rig, manager: Manager) -> None:
    _, second = await deletable(rig, manager)
    before = rig.contents()
    children = {target: [str(rig.top(target))] for target in rig.targets}
    done = await story.delete(manager, story.delete_request(second, children))
    assert done.error is None
    assert rig.contents() == before


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Let ``qemu-img SUBCOMMAND`` fail, as an I/O error would make it, for images of a name, after doing its work."""
    real = shutil.which("qemu-img")
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def fail(subcommand: str, name: str) -> None:
        script = directory / "qemu-img"
        case = f"{subcommand}*{name}*" if subcommand else "never"
        script.write_text(f'#!/bin/sh\ncase "$*" in {case}) {real} "$@"; echo Input/output error >&2; exit 1;; esac\n')
        with script.open("a") as file:
            file.write(f'exec {real} "$@"\n')
        script.chmod(0o755)

    return fail


def grow(path: Path, mebibytes: int) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 9 1M {mebibytes}M", path], check=True)


async def heavy_below(rig: Rig, manager: Manager) -> tuple[Transaction, DeleteRequest]:
    """Freeze disks that hold more than what was written since."""
    for target in rig.targets:
        grow(rig.top(target), 2)
    first, second = await deletable(rig, manager)
    return first, story.delete_request(first, {volume.target: [volume.path] for volume in second.volumes})


@pytest.mark.case("D4")
async def test_small_child_is_committed_down_and_takes_its_place_under_its_own_name(rig: Rig, manager: Manager) -> None:
    first, asked = await heavy_below(rig, manager)
    before, child = rig.contents(), Path(asked.volumes[0].children[0])
    child.chmod(0o640)
    definition = (rig.hypervisor.directory / f"{VM}.xml").read_text()
    done = await story.delete(manager, asked)
    assert [one.moved_bytes < 600_000 for one in done.outcomes] == [True, True]
    assert rig.contents() == before
    assert not [one.path for one in first.volumes if Path(one.path).exists()]
    assert (rig.hypervisor.directory / f"{VM}.xml").read_text() == definition
    assert child.stat().st_mode & 0o777 == 0o640
    assert done.outcomes[0].fingerprints == {str(child): images.fingerprint(child)}
    assert done.outcomes[0].new_backing is None


@pytest.mark.case("D4")
async def test_the_top_itself_can_be_committed_down(rig: Rig, manager: Manager) -> None:
    for target in rig.targets:
        grow(rig.top(target), 2)
    taken, _ = await story.snapshot(manager)
    story.change_everything(rig, 0x61)
    before = rig.contents()
    done = await story.delete(manager, story.delete_request(taken, {t: [str(rig.top(t))] for t in rig.targets}))
    assert (done.error, rig.contents()) == (None, before)
    assert {rig.top(target).stat().st_size > 2**21 for target in rig.targets} == {True}


@pytest.mark.case("D2")
async def test_one_disk_that_cannot_be_rebased_keeps_all_frozen_files_and_a_repeat_finishes(
    rig: Rig, manager: Manager, failing: Callable[[str, str], None]
) -> None:
    first, second = await deletable(rig, manager)
    before = rig.contents()
    frozen = [raw_sha256(Path(volume.path)) for volume in first.volumes]
    asked = story.delete_request(first, {volume.target: [volume.path] for volume in second.volumes})
    failing("rebase", "vdb")
    failed = await story.delete(manager, asked)
    assert [(o.target, o.done, o.error is None) for o in failed.outcomes] == [
        ("vda", False, True),
        ("vdb", False, False),
    ]
    assert [raw_sha256(Path(volume.path)) for volume in first.volumes] == frozen
    failing("", "")
    assert (await story.delete(manager, asked)).error is None
    assert rig.contents() == before


@pytest.mark.case("D2")
@pytest.mark.case("D6")
async def test_commit_that_fails_half_way_is_told_as_altered_and_a_repeat_finishes(
    rig: Rig, manager: Manager, failing: Callable[[str, str], None]
) -> None:
    first, asked = await heavy_below(rig, manager)
    before = rig.contents()
    failing("commit", "vdb")
    failed = await story.delete(manager, asked)
    assert [one.done for one in failed.outcomes] == [False, False]
    assert [one.altered for one in failed.outcomes] == [images.fingerprint(Path(v.path)) for v in first.volumes]
    assert rig.contents() == before
    failing("", "")
    assert (await story.delete(manager, asked)).error is None
    assert rig.contents() == before
    assert not [one.path for one in first.volumes if Path(one.path).exists()]


@asynccontextmanager
async def held_open(path: str) -> AsyncIterator[None]:
    """Have an image open as a VM that runs has it: its top for writing, what it stands on for reading alone."""
    pipe = asyncio.subprocess.PIPE
    holder = await asyncio.create_subprocess_exec("qemu-io", "-f", "qcow2", path, stdin=pipe, stdout=pipe)
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(b"length\n")
    await holder.stdin.drain()
    await holder.stdout.readline()
    try:
        yield
    finally:
        holder.stdin.close()
        await holder.wait()


@pytest.mark.case("D2")
async def test_disk_that_somebody_writes_to_is_found_before_any_disk_is_begun(rig: Rig, manager: Manager) -> None:
    first, second = await deletable(rig, manager)
    asked = story.delete_request(first, {volume.target: [volume.path] for volume in second.volumes})
    prints = [images.fingerprint(Path(volume.path)) for volume in second.volumes]
    async with held_open(second.volumes[1].path):
        with pytest.raises(ImageInUse):
            await manager.put(uuid4(), asked)
    assert [images.fingerprint(Path(volume.path)) for volume in second.volumes] == prints


async def test_deletion_that_only_rebases_can_be_stopped_and_changes_nothing_a_guest_reads(
    rig: Rig, manager: Manager
) -> None:
    first, second = await deletable(rig, manager)
    before = rig.contents()
    asked = story.delete_request(first, {volume.target: [volume.path] for volume in second.volumes})
    id_ = uuid4()
    await manager.put(id_, asked)
    await manager.commit(id_)
    stopped = await manager.abort(id_)
    assert (stopped.state, [one.done for one in stopped.outcomes]) == ("aborted", [False, False])
    assert rig.guards.all() == {}
    assert rig.contents() == before
    assert all(Path(volume.path).exists() for volume in first.volumes)
    assert (await story.delete(manager, asked)).error is None
    assert rig.contents() == before


@pytest.mark.case("D2")
async def test_frozen_file_that_will_not_go_keeps_all_of_them(rig: Rig, manager: Manager) -> None:
    first, second = await deletable(rig, manager)
    before = rig.contents()
    asked = story.delete_request(first, {volume.target: [volume.path] for volume in second.volumes})
    id_ = uuid4()
    in_the_way = files.staged_path(Path(first.volumes[1].path), str(id_))
    in_the_way.mkdir()
    failed = await story.delete(manager, asked, id_)
    in_the_way.rmdir()
    assert [(o.target, o.done, o.error is None) for o in failed.outcomes] == [
        ("vda", False, True),
        ("vdb", False, False),
    ]
    assert all(Path(volume.path).exists() for volume in first.volumes)
    assert (await story.delete(manager, asked)).error is None
    assert rig.contents() == before
    assert not [name for name in rig.files() if ".coldframe-" in name]


@pytest.mark.case("D2")
async def test_frozen_file_that_will_not_go_keeps_the_others_from_being_written_to(rig: Rig, manager: Manager) -> None:
    """One disk's file is to be removed and will not go, so the other's, which is to be committed into, is untouched."""
    grow(rig.top("vda"), 2)
    first, second = await deletable(rig, manager)
    asked = story.delete_request(first, {volume.target: [volume.path] for volume in second.volumes})
    before, frozen = rig.contents(), [raw_sha256(Path(volume.path)) for volume in first.volumes]
    id_ = uuid4()
    in_the_way = files.staged_path(Path(first.volumes[1].path), str(id_))
    in_the_way.mkdir()
    failed = await story.delete(manager, asked, id_)
    in_the_way.rmdir()
    assert [(one.done, one.altered) for one in failed.outcomes] == [(False, None), (False, None)]
    assert [raw_sha256(Path(volume.path)) for volume in first.volumes] == frozen
    assert (await story.delete(manager, asked)).error is None
    assert rig.contents() == before


@pytest.mark.case("D2")
async def test_commit_that_fails_brings_back_what_was_set_aside(
    rig: Rig, manager: Manager, failing: Callable[[str, str], None]
) -> None:
    grow(rig.top("vda"), 2)
    first, second = await deletable(rig, manager)
    asked = story.delete_request(first, {volume.target: [volume.path] for volume in second.volumes})
    before, kept = rig.contents(), raw_sha256(Path(first.volumes[1].path))
    failing("commit", "vda")
    failed = await story.delete(manager, asked)
    assert [(one.target, one.done, one.altered is None) for one in failed.outcomes] == [
        ("vda", False, False),
        ("vdb", False, True),
    ]
    assert raw_sha256(Path(first.volumes[1].path)) == kept
    failing("", "")
    assert (await story.delete(manager, asked)).error is None
    assert rig.contents() == before
    assert not [name for name in rig.files() if ".coldframe-" in name]


@pytest.mark.case("D5")
async def test_frozen_file_below_another_domains_chain_is_not_written_to(rig: Rig, manager: Manager) -> None:
    first, asked = await heavy_below(rig, manager)
    child = Path(asked.volumes[0].children[0])
    clone = rig.images / "elsewhere" / "clone.qcow2"
    clone.parent.mkdir()
    await qemu_img.create_overlay(clone, child, "qcow2", DISK_BYTES)
    rig.neighbour("clone", clone)
    before, of_clone, inode = rig.contents(), raw_sha256(clone), child.stat().st_ino
    assert (await story.delete(manager, asked)).error is None
    assert (rig.contents(), raw_sha256(clone), child.stat().st_ino) == (before, of_clone, inode)
    assert not Path(first.volumes[0].path).exists()


@pytest.mark.case("D2")
async def test_file_that_a_running_clone_stands_on_is_not_rewritten_under_it(rig: Rig, manager: Manager) -> None:
    _, asked = await heavy_below(rig, manager)
    child = Path(asked.volumes[1].children[0])
    clone = rig.images / "clone.qcow2"
    await qemu_img.create_overlay(clone, child, "qcow2", DISK_BYTES)
    rig.neighbour("clone", clone)
    prints = {path: images.fingerprint(path) for path in rig.images.glob("*.cf-*")}
    async with held_open(str(clone)):
        with pytest.raises(ImageInUse, match="must be shut off first"):
            await manager.put(uuid4(), asked)
        assert {path: images.fingerprint(path) for path in rig.images.glob("*.cf-*")} == prints
    before, of_clone = rig.contents(), raw_sha256(clone)
    assert (await story.delete(manager, asked)).error is None
    assert (rig.contents(), raw_sha256(clone)) == (before, of_clone)


@pytest.mark.case("D5")
async def test_child_that_another_domain_has_as_a_disk_is_not_merged(rig: Rig, manager: Manager) -> None:
    first, asked = await heavy_below(rig, manager)
    rig.neighbour("twin", Path(asked.volumes[0].children[0]))
    with pytest.raises(ImageRefused, match="a disk of twin too"):
        await manager.put(uuid4(), asked)
    assert Path(first.volumes[0].path).exists()


async def test_deletion_that_has_begun_to_write_to_frozen_files_goes_on(rig: Rig) -> None:
    manager = rig.manager()
    _, asked = await heavy_below(rig, manager)
    id_ = uuid4()
    await manager.put(id_, asked)
    await manager.commit(id_)
    while not manager._known[id_]._final:
        await asyncio.sleep(0)
    with pytest.raises(TransactionEnded):
        await manager.abort(id_)
    assert manager.get(id_).state == "committed"


@pytest.mark.case("D5")
async def test_template_is_neither_written_to_nor_removed(rig: Rig, manager: Manager) -> None:
    template = rig.images / "template.qcow2"
    rig.top("vda").rename(template)
    grow(template, 3)
    await qemu_img.create_overlay(rig.images / "vda.qcow2", template, "qcow2", template_size(template))
    as_it_was = (template.read_bytes(), images.fingerprint(template))
    first, second = await deletable(rig, manager)
    before = rig.contents()
    for taken, children in ((first, {v.target: [v.path] for v in second.volumes}), (second, None)):
        done = await story.delete(
            manager, story.delete_request(taken, children or {t: [str(rig.top(t))] for t in rig.targets})
        )
        assert done.error is None
    assert rig.contents() == before
    assert (template.read_bytes(), images.fingerprint(template)) == as_it_was


def template_size(path: Path) -> int:
    return qcow2.read_header(path).virtual_size_bytes


@pytest.mark.case("D5")
async def test_file_that_another_domain_stands_on_keeps_its_bytes(rig: Rig, manager: Manager) -> None:
    """The other domain's disk is elsewhere, where no look at the directory finds it."""
    first, asked = await heavy_below(rig, manager)
    elsewhere = rig.images / "other" / "clone.qcow2"
    elsewhere.parent.mkdir()
    await qemu_img.create_overlay(elsewhere, Path(first.volumes[0].path), "qcow2", DISK_BYTES)
    rig.neighbour("other", elsewhere)
    with pytest.raises(ImageRefused, match=r"clone\.qcow2 stands on it"):
        await manager.put(uuid4(), asked)


def add_bitmap(path: Path) -> None:
    subprocess.run(["qemu-img", "bitmap", "--add", path, "backup"], check=True)


@pytest.mark.parametrize("what", ["another name", "bitmaps"])
async def test_image_that_is_more_than_its_bytes_is_rebased_and_not_replaced(
    rig: Rig, manager: Manager, what: str
) -> None:
    _, asked = await heavy_below(rig, manager)
    child = Path(asked.volumes[0].children[0])
    if what == "bitmaps":
        add_bitmap(child)
    else:
        (rig.root / "second-name").hardlink_to(child)
    before, inode = rig.contents(), child.stat().st_ino
    assert (await story.delete(manager, asked)).error is None
    assert (rig.contents(), child.stat().st_ino) == (before, inode)


@pytest.mark.case("D5")
async def test_overlay_that_an_administrator_put_on_a_frozen_file_keeps_it_from_deletion(
    rig: Rig, manager: Manager
) -> None:
    first, second = await deletable(rig, manager)
    by_hand = rig.images / "by-hand.qcow2"
    frozen = Path(first.volumes[0].path)
    await qemu_img.create_overlay(by_hand, frozen, "qcow2", first.volumes[0].virtual_size_bytes)
    asked = story.delete_request(first, {volume.target: [volume.path] for volume in second.volumes})
    with pytest.raises(ImageRefused, match=r"by-hand\.qcow2 stands on it"):
        await manager.put(uuid4(), asked)
    assert frozen.exists()


@pytest.mark.case("D5")
async def test_frozen_file_that_another_domain_stands_on_from_elsewhere_is_kept(rig: Rig, manager: Manager) -> None:
    first, second = await deletable(rig, manager)
    frozen, elsewhere = Path(first.volumes[0].path), rig.images / "elsewhere"
    elsewhere.mkdir()
    clone = elsewhere / "clone.qcow2"
    await qemu_img.create_overlay(clone, frozen, "qcow2", first.volumes[0].virtual_size_bytes)
    rig.neighbour("clone", clone)
    asked = story.delete_request(first, {volume.target: [volume.path] for volume in second.volumes})
    with pytest.raises(ImageRefused, match=r"clone\.qcow2 stands on it"):
        await manager.put(uuid4(), asked)
    assert frozen.exists()


async def test_frozen_file_that_another_domain_boots_from_is_kept(rig: Rig, manager: Manager) -> None:
    first, second = await deletable(rig, manager)
    rig.neighbour("twin", Path(first.volumes[0].path))
    asked = story.delete_request(first, {volume.target: [volume.path] for volume in second.volumes})
    with pytest.raises(ImageRefused, match="a disk of twin"):
        await manager.put(uuid4(), asked)
