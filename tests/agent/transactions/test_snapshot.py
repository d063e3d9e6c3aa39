"""Taking a snapshot, on real images, NVRAM, TPM state, guards and journal; libvirt is played."""

import asyncio
import contextlib
from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import (
    DomainManagedSave,
    DomainPaused,
    DomainRunning,
    DomainTransient,
    HostFileMissing,
    ImageInUse,
    ImageRefused,
    NoSpace,
    QemuImgFailed,
    StorageFailed,
)
from agent.host import qcow2
from agent.transactions.manager import Manager
from tests.agent.host.full_disk import full_file_system
from tests.agent.transactions import story
from tests.agent.transactions.rig import Rig


async def test_snapshot_freezes_disks_and_captures_the_host_files(rig: Rig, manager: Manager) -> None:
    before = rig.contents()
    taken, host_files = await story.snapshot(manager)
    assert taken.state == "committed"
    assert host_files["nvram"] == rig.nvram.read_bytes()
    assert rig.contents() == before
    assert {volume.overlay for volume in taken.volumes} == {str(rig.top(target)) for target in rig.targets}


@pytest.mark.case("S13")
async def test_overlays_are_private_keep_the_size_and_record_the_format(rig: Rig, manager: Manager) -> None:
    taken, _ = await story.snapshot(manager)
    for volume in taken.volumes:
        overlay = Path(volume.overlay)
        assert overlay.stat().st_mode & 0o777 == 0o600
        header = qcow2.read_header(overlay)
        assert (header.virtual_size_bytes, header.backing_format) == (volume.virtual_size_bytes, "qcow2")


@pytest.mark.case("S7")
@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("running", DomainRunning),
        ("paused", DomainPaused),
        ("saved", DomainManagedSave),
        ("transient running", DomainTransient),
    ],
)
async def test_domain_that_is_not_at_rest_is_refused_and_untouched(
    rig: Rig, manager: Manager, flags: str, error: type[Exception]
) -> None:
    rig.flags(flags)
    files_before = rig.files()
    with pytest.raises(error):
        await manager.put(uuid4(), story.snapshot_request())
    assert rig.files() == files_before
    assert rig.guards.all() == {}


@pytest.mark.case("S4")
@pytest.mark.case("S6")
async def test_one_unwritable_disk_undoes_all_and_the_next_try_succeeds(tmp_path: Path) -> None:
    rig = Rig(tmp_path, disks=3).build()
    id_ = uuid4()
    blocker = rig.images / f"vdc.cf-{id_}.vdc.qcow2"

    def block(point: str) -> None:
        if point == "before create-overlay vdc":
            blocker.mkdir()  # stands where the third overlay is to go

    manager = rig.manager(block)
    before, tops, contents = rig.files(), [rig.top(t) for t in rig.targets], rig.contents()
    with pytest.raises((QemuImgFailed, StorageFailed)):
        await manager.put(id_, story.snapshot_request())
    blocker.rmdir()
    assert (rig.files(), [rig.top(t) for t in rig.targets], rig.contents()) == (before, tops, contents)
    assert rig.guards.all() == {}
    assert (await story.snapshot(manager))[0].state == "committed"


async def test_file_that_has_the_name_of_an_overlay_is_refused_and_kept(rig: Rig, manager: Manager) -> None:
    id_ = uuid4()
    foreign = rig.images / f"vda.cf-{id_}.vda.qcow2"
    foreign.write_bytes(b"somebody's")
    with pytest.raises(ImageRefused, match="taken"):
        await manager.put(id_, story.snapshot_request())
    assert foreign.read_bytes() == b"somebody's"


@pytest.mark.case("S5")
async def test_lost_tpm_fails_a_required_snapshot_and_makes_a_best_effort_one_partial(
    rig: Rig, manager: Manager
) -> None:
    (rig.tpm / "tpm2" / "tpm2-00.permall").unlink()
    before = rig.files()
    with pytest.raises(HostFileMissing, match="tpm"):
        await manager.put(uuid4(), story.snapshot_request())
    assert rig.files() == before
    taken, host_files = await story.snapshot(manager, host_files="best-effort")
    assert list(host_files) == ["nvram"]
    assert [item.type for item in taken.missing] == ["tpm"]


@pytest.mark.case("S12")
async def test_too_little_space_is_refused_with_need_and_have(rig: Rig) -> None:
    with pytest.raises(NoSpace) as caught:
        await rig.manager(reserve_bytes=1 << 60).put(uuid4(), story.snapshot_request())
    assert caught.value.facts["need_bytes"] > caught.value.facts["have_bytes"]


@pytest.mark.case("S12")
async def test_disk_that_fills_up_in_the_middle_undoes_all_and_the_next_try_succeeds(tmp_path: Path) -> None:
    with full_file_system(tmp_path, "48m") as free_the_first_ballast:
        free_the_first_ballast()
        rig = Rig(tmp_path).build()
        ballast = tmp_path / "ballast"

        def fill(point: str) -> None:
            if point == "before create-overlay vdb" and not ballast.exists():
                with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                    while file.write(b"x" * 4096):
                        pass

        manager = rig.manager(fill)
        before, contents = rig.files(), rig.contents()
        with pytest.raises((QemuImgFailed, NoSpace, StorageFailed)):
            await manager.put(uuid4(), story.snapshot_request())
        ballast.write_bytes(b"")
        await manager.tick()  # the end of an undo needs room for its journal record
        assert rig.files() - {"ballast"} == before
        assert (rig.contents(), rig.guards.all()) == (contents, {})
        assert (await story.snapshot(manager))[0].state == "committed"
        rig.events.close()


async def test_image_that_qemu_writes_to_is_refused(rig: Rig, manager: Manager) -> None:
    writer = await asyncio.create_subprocess_exec(
        "qemu-io", "-f", "qcow2", str(rig.top("vda")), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write(b"length\n")
    await writer.stdin.drain()
    await writer.stdout.readline()
    try:
        with pytest.raises(ImageInUse, match="vda"):
            await manager.put(uuid4(), story.snapshot_request())
    finally:
        writer.stdin.close()
        await writer.wait()


@pytest.mark.case("S8")
async def test_qemu_cannot_write_to_old_or_new_tops_while_a_transaction_is_open(rig: Rig, manager: Manager) -> None:
    id_ = uuid4()
    prepared = await manager.put(id_, story.snapshot_request())
    for path in [rig.top("vda"), *(volume.overlay for volume in prepared.volumes)]:
        command = ["qemu-io", "-f", "qcow2", "-c", "write 0 512", str(path)]
        tried = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, complaint = await tried.communicate()
        assert b'Failed to get "write" lock' in complaint
    await manager.abort(id_)
    rig.write_disk("vda", 1)


async def test_disk_that_another_domain_has_too_is_refused(rig: Rig, manager: Manager) -> None:
    rig.neighbour("twin", rig.top("vdb"))
    before = rig.files()
    with pytest.raises(ImageRefused, match="a disk of twin too"):
        await manager.put(uuid4(), story.snapshot_request())
    assert rig.files() == before
    await story.snapshot(manager, exclude=["vdb"])
