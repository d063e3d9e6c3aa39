"""Whole transactions on real images, NVRAM, TPM state, guards and journal; libvirt is played."""

import asyncio
import contextlib
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from agent.errors import (
    DiskMoved,
    DomainBusy,
    DomainManagedSave,
    DomainPaused,
    DomainRunning,
    DomainTransient,
    FrozenFileAltered,
    HashMismatch,
    HostFileDamaged,
    HostFileMissing,
    HostFileNotUploaded,
    HypervisorUnavailable,
    ImageInUse,
    ImageRefused,
    NoSpace,
    PreconditionFailed,
    QemuImgFailed,
    Recorded,
    StorageFailed,
    TransactionEnded,
    TransactionMismatch,
)
from agent.host import files, qcow2, qemu_img
from agent.transactions.manager import Manager
from agent.wire.transaction import SnapshotRequest, Transaction
from tests.agent.host.full_disk import full_file_system
from tests.agent.transactions import story
from tests.agent.transactions.rig import VM, Rig, nvram, permall


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path).build()


@pytest.fixture
def manager(rig: Rig) -> Manager:
    return rig.manager()


def request(**changes: object) -> SnapshotRequest:
    return SnapshotRequest(vm=VM, snapshot=uuid4(), **changes)  # type: ignore[arg-type]  # overrides


def change_everything(rig: Rig, pattern: int = 0x42) -> None:
    for target in rig.targets:
        rig.write_disk(target, pattern)
    rig.nvram.write_bytes(nvram(bytes([pattern])))
    (rig.tpm / "tpm2" / "tpm2-00.permall").write_bytes(permall(bytes([pattern])))


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


@pytest.mark.case("R1")
async def test_revert_brings_back_every_byte(rig: Rig, manager: Manager) -> None:
    before = rig.contents()
    taken, host_files = await story.snapshot(manager)
    change_everything(rig)
    assert not set(rig.contents().values()) & set(before.values())
    await story.revert(manager, story.revert_request(taken, host_files), host_files)
    assert rig.contents() == before


@pytest.mark.case("R2")
async def test_snapshot_is_never_consumed(rig: Rig, manager: Manager) -> None:
    before = rig.contents()
    taken, host_files = await story.snapshot(manager)
    for pattern in (0x43, 0x44, 0x45):
        change_everything(rig, pattern)
        await story.revert(manager, story.revert_request(taken, host_files), host_files)
        assert rig.contents() == before


@pytest.mark.case("R3")
async def test_revert_reaches_every_node_of_a_branched_tree(rig: Rig, manager: Manager) -> None:
    nodes = []
    for pattern in (0x50, 0x51):
        change_everything(rig, pattern)
        nodes.append((rig.contents(), *await story.snapshot(manager)))
    await story.revert(manager, story.revert_request(nodes[0][1], nodes[0][2]), nodes[0][2])
    change_everything(rig, 0x52)
    nodes.append((rig.contents(), *await story.snapshot(manager)))
    for contents, taken, host_files in [*nodes, *reversed(nodes)]:
        await story.revert(manager, story.revert_request(taken, host_files), host_files)
        assert rig.contents() == contents


@pytest.mark.case("R8")
async def test_undo_point_brings_back_the_state_before_the_revert(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    change_everything(rig)
    changed = rig.contents()
    id_ = uuid4()
    asked = story.revert_request(taken, host_files)
    undo = await manager.put(id_, asked)
    kept = {item.type: manager.captured(id_, item.type).read_bytes() for item in undo.host_files}
    for type_, data in host_files.items():
        await manager.upload(id_, type_, story.chunks(data))
    await manager.commit(id_)
    await story.revert(manager, story.revert_request(undo, kept, snapshot=asked.undo), kept)
    assert rig.contents() == changed


@pytest.mark.case("R6")
async def test_tpm_is_removed_when_asked_and_is_in_the_undo_point(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    asked = story.revert_request(taken, {"nvram": host_files["nvram"]}, remove=["tpm"])
    undone = await story.revert(manager, asked, host_files)
    assert not rig.tpm.exists()
    assert "tpm" in [item.type for item in undone.host_files]


@pytest.mark.case("R9")
async def test_one_volume_alone_goes_back_without_host_files(rig: Rig, manager: Manager) -> None:
    before = rig.contents()
    taken, host_files = await story.snapshot(manager)
    change_everything(rig)
    changed = rig.contents()
    asked = story.revert_request(taken, {}, alone=True)
    done = await story.revert(manager, msgspec.structs.replace(asked, volumes=asked.volumes[1:]), host_files)
    assert rig.contents() == {**changed, "vdb": before["vdb"]}
    assert done.kept == ["nvram", "tpm"]


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
        await manager.put(uuid4(), request())
    assert rig.files() == files_before
    assert rig.guards.all() == {}


@pytest.mark.case("R4")
async def test_revert_of_a_running_domain_is_refused_before_anything_is_touched(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    before, seen = rig.files(), rig.contents()
    rig.flags("running")
    with pytest.raises(DomainRunning):
        await manager.put(uuid4(), story.revert_request(taken, host_files))
    assert (rig.files(), rig.contents()) == (before, seen)


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
        await manager.put(id_, request())
    blocker.rmdir()
    assert (rig.files(), [rig.top(t) for t in rig.targets], rig.contents()) == (before, tops, contents)
    assert rig.guards.all() == {}
    assert (await story.snapshot(manager))[0].state == "committed"


async def test_file_that_has_the_name_of_an_overlay_is_refused_and_kept(rig: Rig, manager: Manager) -> None:
    id_ = uuid4()
    foreign = rig.images / f"vda.cf-{id_}.vda.qcow2"
    foreign.write_bytes(b"somebody's")
    with pytest.raises(ImageRefused, match="taken"):
        await manager.put(id_, request())
    assert foreign.read_bytes() == b"somebody's"


@pytest.mark.case("S5")
async def test_lost_tpm_fails_a_required_snapshot_and_makes_a_best_effort_one_partial(
    rig: Rig, manager: Manager
) -> None:
    (rig.tpm / "tpm2" / "tpm2-00.permall").unlink()
    before = rig.files()
    with pytest.raises(HostFileMissing, match="tpm"):
        await manager.put(uuid4(), request())
    assert rig.files() == before
    taken, host_files = await story.snapshot(manager, host_files="best-effort")
    assert list(host_files) == ["nvram"]
    assert [item.type for item in taken.missing] == ["tpm"]


@pytest.mark.case("S12")
async def test_too_little_space_is_refused_with_need_and_have(rig: Rig) -> None:
    with pytest.raises(NoSpace) as caught:
        await rig.manager(reserve_bytes=1 << 60).put(uuid4(), request())
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
            await manager.put(uuid4(), request())
        assert rig.files() - {"ballast"} == before
        ballast.unlink()
        ballast.touch()
        await manager.tick()
        assert (rig.contents(), rig.guards.all()) == (contents, {})
        assert (await story.snapshot(manager))[0].state == "committed"
        rig.events.close()


@pytest.mark.case("S15")
async def test_same_id_twice_is_one_snapshot_with_the_same_answer(rig: Rig, manager: Manager) -> None:
    id_, asked = uuid4(), request()
    first, second = await asyncio.gather(manager.put(id_, asked), manager.put(id_, asked))
    assert first == second
    committed = await manager.commit(id_)
    assert await manager.commit(id_) == committed
    assert await manager.put(id_, asked) == committed
    with pytest.raises(TransactionMismatch):
        await manager.put(id_, request())


async def test_failed_request_repeated_fails_the_same_even_after_a_restart(rig: Rig, manager: Manager) -> None:
    rig.flags("running")
    id_, asked = uuid4(), request()
    with pytest.raises(DomainRunning):
        await manager.put(id_, asked)
    rig.flags("")
    for again in (manager, rig.manager()):
        if again is not manager:
            await again.recover()
        with pytest.raises(Recorded) as caught:
            await again.put(id_, asked)
        assert caught.value.problem().code == "domain-running"


@pytest.mark.case("S14")
async def test_second_transaction_on_one_domain_is_refused_while_the_first_is_open(rig: Rig, manager: Manager) -> None:
    id_ = uuid4()
    await manager.put(id_, request())
    with pytest.raises(DomainBusy, match=str(id_)):
        await manager.put(uuid4(), request())
    await manager.abort(id_)
    assert (await story.snapshot(manager))[0].state == "committed"


async def test_abort_leaves_everything_as_before(rig: Rig, manager: Manager) -> None:
    before, contents = rig.files(), rig.contents()
    id_ = uuid4()
    await manager.put(id_, request())
    assert rig.files() != before
    assert (await manager.abort(id_)).state == "aborted"
    assert (await manager.abort(id_)).state == "aborted"
    assert (rig.files(), rig.contents()) == (before, contents)
    with pytest.raises(Recorded):
        await manager.commit(id_)


async def test_committed_transaction_cannot_be_aborted(manager: Manager) -> None:
    taken, _ = await story.snapshot(manager)
    with pytest.raises(TransactionEnded):
        await manager.abort(taken.id)


async def test_lease_that_ran_out_undoes_and_says_so(rig: Rig, manager: Manager) -> None:
    before = rig.files()
    id_ = uuid4()
    await manager.put(id_, request(lease_s=0.0))
    await manager.tick()
    assert rig.files() == before
    assert (error := manager.get(id_).error) is not None
    assert error.code == "lease-expired"
    assert rig.guards.all() == {}


async def test_renewed_lease_counts_anew(manager: Manager) -> None:
    id_ = uuid4()
    first = (await manager.put(id_, request(lease_s=50.0))).lease_expires_at
    renewed = (await manager.renew(id_)).lease_expires_at
    assert first is not None
    assert renewed is not None
    assert renewed > first


async def test_disk_that_was_moved_before_the_commit_is_kept_and_everything_undone(rig: Rig, manager: Manager) -> None:
    before = rig.files()
    id_ = uuid4()
    await manager.put(id_, request())
    moved = rig.images / "moved.qcow2"
    rig.edit(lambda xml: xml.replace(f"{rig.images}/vdb.qcow2", str(moved)))
    with pytest.raises(DiskMoved):
        await manager.commit(id_)
    assert rig.top("vdb") == moved
    assert rig.top("vda") == rig.images / "vda.qcow2"
    assert rig.files() == before


async def test_edit_of_the_domain_before_the_commit_is_kept(rig: Rig, manager: Manager) -> None:
    id_ = uuid4()
    await manager.put(id_, request())
    rig.edit(lambda xml: xml.replace("<devices>", "<description>mine</description><devices>"))
    await manager.commit(id_)
    assert "<description>mine</description>" in (rig.hypervisor.directory / f"{VM}.xml").read_text()


@pytest.mark.case("R7")
@pytest.mark.parametrize("failing", ["exchange", "define"])
async def test_revert_that_fails_at_its_last_step_leaves_everything_as_it_was(
    rig: Rig, manager: Manager, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    taken, host_files = await story.snapshot(manager)
    change_everything(rig)
    before, contents, definition = rig.files(), rig.contents(), [rig.top(t) for t in rig.targets]
    id_ = uuid4()
    await manager.put(id_, story.revert_request(taken, host_files))
    for type_, data in host_files.items():
        await manager.upload(id_, type_, story.chunks(data))
    if failing == "define":
        rig.hypervisor.failing, rig.hypervisor.error = (
            {"define"},
            lambda: StorageFailed(action="a", path="b", reason="c"),
        )
    else:
        real = files.exchange

        def break_tpm(a: Path, b: Path) -> None:
            if a == rig.tpm and "nvram" not in str(b) and not broken:
                broken.append(a)
                raise StorageFailed(action="renaming to", path=str(a), reason="Input/output error")
            real(a, b)

        broken: list[Path] = []
        monkeypatch.setattr(files, "exchange", break_tpm)  # the kernel's answer is what is played here
    with pytest.raises(StorageFailed):
        await manager.commit(id_)
    rig.hypervisor.failing = set()
    assert (rig.files(), rig.contents(), [rig.top(t) for t in rig.targets]) == (before, contents, definition)
    assert manager.get(id_).state == "aborted"


async def test_commit_waits_under_guard_while_libvirt_is_away_and_then_ends(rig: Rig, manager: Manager) -> None:
    id_ = uuid4()
    await manager.put(id_, request())
    rig.hypervisor.failing = {"define"}
    assert (await manager.commit(id_)).state == "committing"
    assert VM in rig.guards.all()
    rig.hypervisor.failing = set()
    await manager.tick()
    assert manager.get(id_).state == "committed"
    assert rig.guards.all() == {}


async def test_recovery_without_libvirt_undoes_at_once_and_redoes_when_it_is_back(tmp_path: Path) -> None:
    undone, redone = Rig(tmp_path / "undo").build(), Rig(tmp_path / "redo").build()
    before = undone.files()
    await undone.manager().put(uuid4(), request())
    dying = redone.manager()
    id_ = uuid4()
    await dying.put(id_, request())
    redone.hypervisor.failing = {"define"}
    await dying.commit(id_)
    for rig in (undone, redone):
        rig.hypervisor.failing = {"domain", "inactive_xml", "define"}
    fresh, other = undone.manager(), redone.manager()
    await fresh.recover()
    await other.recover()
    assert [item.state for item in (*fresh.all(), *other.all())] == ["aborted", "committing"]
    assert undone.files() == before
    redone.hypervisor.failing = set()
    await other.tick()
    assert other.get(id_).state == "committed"
    assert undone.guards.all() == redone.guards.all() == {}


async def test_libvirt_away_at_prepare_is_a_clear_error_and_nothing_is_left(rig: Rig, manager: Manager) -> None:
    before = rig.files()
    rig.hypervisor.failing = {"inactive_xml"}
    with pytest.raises(HypervisorUnavailable):
        await manager.put(uuid4(), request())
    assert rig.files() == before


@pytest.mark.case("R5")
async def test_wrong_hash_and_missing_upload_are_refused_by_name(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    id_ = uuid4()
    await manager.put(id_, story.revert_request(taken, host_files))
    with pytest.raises(HashMismatch, match="nvram"):
        await manager.upload(id_, "nvram", story.chunks(nvram(b"x")))
    await manager.upload(id_, "nvram", story.chunks(host_files["nvram"]))
    with pytest.raises(HostFileNotUploaded, match="tpm"):
        await manager.commit(id_)
    assert manager.get(id_).state == "prepared"


@pytest.mark.case("R5")
async def test_frozen_file_that_is_gone_or_altered_is_refused(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    frozen = Path(taken.volumes[1].path)
    rig.write_disk("vdb", 0x66, frozen)
    with pytest.raises(FrozenFileAltered, match="written to"):
        await manager.put(uuid4(), story.revert_request(taken, host_files))
    frozen.rename(frozen.with_suffix(".away"))
    with pytest.raises(ImageRefused, match=r"vdb.*does not exist"):
        await manager.put(uuid4(), story.revert_request(taken, host_files))


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
            await manager.put(uuid4(), request())
    finally:
        writer.stdin.close()
        await writer.wait()


@pytest.mark.case("S8")
async def test_qemu_cannot_write_to_old_or_new_tops_while_a_transaction_is_open(rig: Rig, manager: Manager) -> None:
    id_ = uuid4()
    prepared = await manager.put(id_, request())
    for path in [rig.top("vda"), *(volume.overlay for volume in prepared.volumes)]:
        command = ["qemu-io", "-f", "qcow2", "-c", "write 0 512", str(path)]
        tried = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, complaint = await tried.communicate()
        assert b'Failed to get "write" lock' in complaint
    await manager.abort(id_)
    rig.write_disk("vda", 1)


@pytest.mark.case("B12")
async def test_host_file_is_replaced_whole_and_keeps_owner_and_mode(rig: Rig, manager: Manager) -> None:
    rig.nvram.chmod(0o640)
    new = nvram(b"N")
    written = await manager.write_host_file(VM, "nvram", new, None)
    assert rig.nvram.read_bytes() == new
    assert rig.nvram.stat().st_mode & 0o777 == 0o640
    assert written.size_bytes == len(new)
    assert rig.guards.all() == {}


@pytest.mark.case("B11")
async def test_stale_version_changes_nothing(rig: Rig, manager: Manager) -> None:
    before = rig.nvram.read_bytes()
    with pytest.raises(PreconditionFailed):
        await manager.write_host_file(VM, "nvram", nvram(b"N"), "0" * 64)
    assert rig.nvram.read_bytes() == before
    assert rig.guards.all() == {}


async def test_damaged_host_file_is_not_written(rig: Rig, manager: Manager) -> None:
    before, seen = rig.nvram.read_bytes(), rig.files()
    with pytest.raises(HostFileDamaged):
        await manager.write_host_file(VM, "nvram", nvram(b"N")[:-1], None)
    assert rig.nvram.read_bytes() == before
    assert rig.files() == seen


async def deletable(rig: Rig, manager: Manager) -> tuple[Transaction, Transaction]:
    first, _ = await story.snapshot(manager)
    change_everything(rig, 0x61)
    second, _ = await story.snapshot(manager)
    change_everything(rig, 0x62)
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
