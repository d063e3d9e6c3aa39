"""Making clones, on real images, NVRAM, TPM state, guards and journal; libvirt is played."""

import asyncio
import hashlib
import os
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from lxml import etree

from agent.errors import (
    DomainBusy,
    DomainExists,
    DomainNameRefused,
    FrozenFileAltered,
    HostFileMissing,
    HostFileNotUploaded,
    HypervisorRefused,
    NoSpace,
    Released,
    StorageFailed,
    TransactionMismatch,
)
from agent.host import images, qcow2, qemu_img
from agent.transactions.manager import Manager
from agent.wire.transaction import ENDED
from tests.agent.transactions import story
from tests.agent.transactions.rig import VM, Rig, nvram, raw_sha256
from tests.agent.transactions.story import CLONE


def definition(rig: Rig, vm: UUID = CLONE) -> etree._Element:
    return etree.fromstring((rig.hypervisor.directory / f"{vm}.xml").read_text())


def state(rig: Rig, vm: UUID = CLONE) -> Path:
    return rig.tpm.parent / str(vm) / "tpm2" / "tpm2-00.permall"


def contents(rig: Rig) -> dict[str, str]:
    """Hash what the clone would see if it started now."""
    seen = {target: raw_sha256(rig.top(target, CLONE)) for target in rig.targets}
    own = Path(definition(rig).findtext("os/nvram") or "")
    seen["nvram"] = hashlib.sha256(own.read_bytes()).hexdigest()
    seen["tpm"] = hashlib.sha256(state(rig).read_bytes()).hexdigest() if state(rig).exists() else "none"
    return seen


@pytest.mark.case("C1")
@pytest.mark.parametrize("mode", ["linked", "full"])
async def test_clone_has_the_snapshots_bytes_and_an_identity_of_its_own(rig: Rig, manager: Manager, mode: str) -> None:
    frozen = rig.contents()
    taken, host_files = await story.snapshot(manager)
    story.change_everything(rig)
    source = rig.contents()
    done = await story.clone(manager, story.clone_request(taken, host_files, mode=mode), host_files)
    assert (done.state, done.kind, done.vm) == ("committed", "clone", CLONE)
    assert contents(rig) == frozen
    assert rig.contents() == source
    root = definition(rig)
    assert (root.findtext("name"), root.findtext("uuid")) == ("copy of win11", str(CLONE))
    assert root.findtext("os/nvram") != str(rig.nvram)
    for volume in done.volumes:
        made = Path(volume.overlay)
        assert made.name.startswith("copy of win11.cf-")
        assert made.stat().st_mode & 0o777 == 0o600
        assert qcow2.read_header(made).backing == (volume.path if mode == "linked" else None)
    assert rig.guards.all() == {}
    assert not [path for path in rig.files() if ".coldframe-" in path]


@pytest.mark.case("C2")
async def test_a_reset_tpm_is_not_there_and_not_expected_and_a_copy_is(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    asked = story.clone_request(taken, host_files, tpm="reset")
    done = await story.clone(manager, asked, host_files)
    assert not state(rig).parent.parent.exists()
    kept = (rig.state_dir / "expected" / str(CLONE)).read_text()
    assert "nvram=" in kept
    assert "tpm=" not in kept
    assert done.expected == ["nvram"]
    other = uuid4()
    await story.clone(manager, story.clone_request(taken, host_files, vm=other, name="copied"), host_files)
    assert state(rig, other).read_bytes() == state(rig, VM).read_bytes()
    assert "tpm=" in (rig.state_dir / "expected" / str(other)).read_text()


async def test_host_files_of_a_clone_belong_to_whom_the_sources_belong(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    for path in (rig.tpm, *rig.tpm.rglob("*")):
        os.chown(path, 4321, 4322)
    os.chown(rig.nvram, 4323, 4324)
    await story.clone(manager, story.clone_request(taken, host_files), host_files)
    owners = {path.stat().st_uid for path in (state(rig), state(rig).parent, state(rig).parent.parent)}
    assert owners == {4321}
    assert Path(definition(rig).findtext("os/nvram") or "").stat().st_gid == 4324


async def test_source_may_run_while_it_is_cloned(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    rig.flags("running")
    assert (await story.clone(manager, story.clone_request(taken, host_files), host_files)).state == "committed"


async def test_snapshot_that_a_linked_clone_stands_on_is_not_merged_away_under_it(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    await story.clone(manager, story.clone_request(taken, host_files), host_files)
    before, tops = contents(rig), {target: [str(rig.top(target))] for target in rig.targets}
    with pytest.raises(Exception, match=r"copy of win11\.cf-.* stands on it"):
        await story.delete(manager, story.delete_request(taken, tops))
    assert contents(rig) == before


@pytest.mark.case("D5")
async def test_what_a_clone_stands_on_is_neither_written_to_nor_removed_by_its_own_tree(
    rig: Rig, manager: Manager
) -> None:
    taken, host_files = await story.snapshot(manager)
    await story.clone(manager, story.clone_request(taken, host_files), host_files)
    prints = {volume.path: images.fingerprint(Path(volume.path)) for volume in taken.volumes}
    first, held = await story.snapshot(manager, vm=CLONE)
    for target in rig.targets:
        rig.write_disk(target, 0x61, path=rig.top(target, CLONE))
    changed = contents(rig)
    second, _ = await story.snapshot(manager, vm=CLONE)
    await story.revert(manager, story.revert_request(first, held, vm=CLONE, undo=None), held)
    assert contents(rig) != changed
    before, source = contents(rig), rig.contents()
    assert (await story.delete(manager, story.delete_request(second, {}))).error is None
    tops = {target: [str(rig.top(target, CLONE))] for target in rig.targets}
    assert (await story.delete(manager, story.delete_request(first, tops))).error is None
    assert (contents(rig), rig.contents()) == (before, source)
    assert {path: images.fingerprint(Path(path)) for path in prints} == prints
    assert [qcow2.read_header(rig.top(target, CLONE)).backing for target in rig.targets] == list(prints)


async def test_name_uuid_or_left_over_firmware_state_that_is_taken_is_refused(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    before = rig.files()
    for changes in ({"name": "win11"}, {"vm": VM}):
        with pytest.raises(DomainExists, match="win11"):
            await manager.put(uuid4(), story.clone_request(taken, host_files, **changes))
    for name in ("", " a", "a/b", "-a", ".a", "a\nb", "a" * 201, "17", str(uuid4())):
        with pytest.raises(DomainNameRefused):
            await manager.put(uuid4(), story.clone_request(taken, host_files, name=name))
    assert rig.files() == before
    (rig.nvram.parent / f"{CLONE}_VARS.fd").write_bytes(nvram())
    with pytest.raises(DomainNameRefused, match="left by an earlier domain"):
        await manager.put(uuid4(), story.clone_request(taken, host_files))


async def test_clone_that_would_start_with_blank_firmware_is_refused(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    tpm_alone, nvram_alone = {"tpm": host_files["tpm"]}, {"nvram": host_files["nvram"]}
    with pytest.raises(HostFileMissing, match="nvram"):
        await manager.put(uuid4(), story.clone_request(taken, tpm_alone))  # type: ignore[arg-type]  # one of them
    with pytest.raises(HostFileMissing, match="reset"):
        await manager.put(uuid4(), story.clone_request(taken, nvram_alone))  # type: ignore[arg-type]  # one of them


async def test_altered_frozen_file_and_too_little_space_are_refused(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    full = rig.manager(reserve_bytes=1 << 60)
    with pytest.raises(NoSpace):
        await full.put(uuid4(), story.clone_request(taken, host_files, mode="full"))
    rig.write_disk("vdb", 0x66, Path(taken.volumes[1].path))
    with pytest.raises(FrozenFileAltered, match="vdb"):
        await manager.put(uuid4(), story.clone_request(taken, host_files))


@pytest.mark.case("C5")
@pytest.mark.parametrize("failing", ["convert", "define"])
async def test_clone_that_fails_leaves_nothing_behind(
    rig: Rig, manager: Manager, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    taken, host_files = await story.snapshot(manager)
    before = rig.files()
    if failing == "define":
        rig.hypervisor.failing = {"define"}
        rig.hypervisor.error = lambda: HypervisorRefused(call="define", reason="the test says so")
    else:
        real = qemu_img.convert

        async def fail_late(source: Path, source_format: str, target: Path, *more: object, **how: object) -> None:
            await real(source, source_format, target, within=[rig.images])
            raise StorageFailed(action="writing", path=str(target), reason="Input/output error")

        monkeypatch.setattr(qemu_img, "convert", fail_late)  # the disk's answer is what is played here
    with pytest.raises((HypervisorRefused, StorageFailed)):
        await story.clone(manager, story.clone_request(taken, host_files, mode="full"), host_files)
    assert rig.files() == before
    assert rig.guards.all() == {}


async def test_the_same_id_makes_one_clone_and_another_request_is_told(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    id_, asked = uuid4(), story.clone_request(taken, {"nvram": host_files["nvram"]}, tpm="reset")
    await manager.put(id_, asked)
    await manager.upload(id_, "nvram", story.chunks(host_files["nvram"]))
    with pytest.raises(DomainBusy):
        await manager.put(uuid4(), story.delete_request(taken, {}))  # its frozen files are being used
    first = await manager.commit(id_)
    assert await manager.put(id_, asked) == first == await manager.commit(id_)
    with pytest.raises(TransactionMismatch):
        await manager.put(id_, story.clone_request(taken, host_files))


async def test_long_copy_is_answered_early_shows_bytes_and_can_be_broken_off(
    rig: Rig, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, host_files = await story.snapshot(manager)
    before, begun = rig.files(), asyncio.Event()

    async def never_end(
        source: Path, source_format: str, target: Path, target_format: str, hear: object, **how: object
    ) -> None:
        assert callable(hear)
        hear(50.0)
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(qemu_img, "convert", never_end)  # a copy that takes hours
    manager.answer_after_s = 0.0
    id_, asked = uuid4(), story.clone_request(taken, host_files, mode="full")
    assert (await manager.put(id_, asked)).state == "preparing"
    await begun.wait()
    assert (await manager.put(id_, asked)).state == "preparing"
    view = manager.get(id_)
    assert 0 < view.done_bytes < view.total_bytes
    assert (await manager.abort(id_)).state == "aborted"
    error = manager.get(id_).error
    assert error is not None
    assert error.code == Released.code
    assert manager.get(id_).state in ENDED
    assert rig.files() == before


async def prepared(rig: Rig, manager: Manager) -> UUID:
    """Bring a clone to the moment before its commit."""
    taken, host_files = await story.snapshot(manager)
    id_ = uuid4()
    await manager.put(id_, story.clone_request(taken, host_files))
    for type_, data in host_files.items():
        await manager.upload(id_, type_, story.chunks(data))
    return id_


@pytest.mark.case("C5")
async def test_domain_that_libvirt_defined_and_complained_about_is_undefined_again(
    rig: Rig, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, host_files = await story.snapshot(manager)
    before, real = rig.files(), rig.hypervisor.define

    async def complain(xml: str) -> UUID:
        await real(xml)
        raise HypervisorRefused(call="define", reason="the answer was lost")

    monkeypatch.setattr(rig.hypervisor, "define", complain)  # libvirt's answer is what is played here
    with pytest.raises(HypervisorRefused):
        await story.clone(manager, story.clone_request(taken, host_files), host_files)
    assert rig.files() == before


async def test_domain_of_somebody_else_with_the_clones_uuid_is_neither_changed_nor_undefined(
    rig: Rig, manager: Manager
) -> None:
    id_ = await prepared(rig, manager)
    foreign = f"<domain type='qemu'><name>theirs</name><uuid>{CLONE}</uuid><os><type>hvm</type></os></domain>"
    await rig.hypervisor.define(foreign)
    with pytest.raises(DomainExists, match="theirs"):
        await manager.commit(id_)
    assert (rig.hypervisor.directory / f"{CLONE}.xml").read_text() == foreign
    assert not [path for path in rig.files() if "copy of win11" in path or f"{CLONE}_VARS" in path]


async def test_file_that_took_the_nvrams_name_in_between_is_left_alone(rig: Rig, manager: Manager) -> None:
    id_ = await prepared(rig, manager)
    taken_name = rig.nvram.parent / f"{CLONE}_VARS.fd"
    taken_name.write_bytes(b"somebody's")
    with pytest.raises(StorageFailed, match="taken its name"):
        await manager.commit(id_)
    assert taken_name.read_bytes() == b"somebody's"
    assert not (rig.hypervisor.directory / f"{CLONE}.xml").exists()


async def test_commit_waits_for_every_host_file(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    id_ = uuid4()
    await manager.put(id_, story.clone_request(taken, host_files))
    with pytest.raises(HostFileNotUploaded, match="nvram, tpm"):
        await manager.commit(id_)
    await manager.abort(id_)
    assert not [path for path in rig.files() if "copy of win11" in path]
