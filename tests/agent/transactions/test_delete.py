"""Merging a snapshot away, on real images, NVRAM, TPM state, guards and journal; libvirt is played."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import (
    ImageRefused,
)
from agent.host import files, qemu_img
from agent.transactions.manager import Manager
from agent.wire.transaction import Transaction
from tests.agent.transactions import story
from tests.agent.transactions.rig import Rig


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


@pytest.mark.case("D2")
async def test_one_disk_that_cannot_be_merged_keeps_all_frozen_files_and_a_repeat_finishes(
    rig: Rig, manager: Manager
) -> None:
    first, second = await deletable(rig, manager)
    before = rig.contents()
    asked = story.delete_request(first, {volume.target: [volume.path] for volume in second.volumes})
    holder = await asyncio.create_subprocess_exec(
        "qemu-io", "-f", "qcow2", second.volumes[1].path, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(b"length\n")
    await holder.stdin.drain()
    await holder.stdout.readline()
    failed = await story.delete(manager, asked)
    holder.stdin.close()
    await holder.wait()
    assert [(o.target, o.done, o.error is None) for o in failed.outcomes] == [
        ("vda", False, True),
        ("vdb", False, False),
    ]
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
