"""Replacing host files, on real images, NVRAM, TPM state, guards and journal; libvirt is played."""

from uuid import uuid4

import pytest

from agent.errors import DomainRunning, HostFileDamaged, HostFileNotUploaded, PreconditionFailed
from agent.transactions.manager import Manager
from agent.web.errors import InvalidRequest
from agent.wire.transaction import RestoreRequest
from tests.agent.transactions import story
from tests.agent.transactions.rig import VM, Rig, nvram


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


@pytest.mark.case("P5")
@pytest.mark.parametrize("lost", [False, True])
async def test_both_host_files_are_put_back_and_what_they_replace_can_be_fetched_before(
    rig: Rig, manager: Manager, lost: bool
) -> None:
    _, host_files = await story.snapshot(manager)
    before = rig.contents()
    story.change_everything(rig)
    rig.lose_host_files() if lost else None
    changed, id_ = rig.contents(), uuid4()
    prepared = await manager.put(id_, story.restore_request(host_files))
    assert sorted(item.type for item in prepared.host_files) == ([] if lost else ["nvram", "tpm"])
    for item in prepared.host_files:
        assert manager.captured(id_, item.type).read_bytes() != host_files[item.type]
    for type_, data in host_files.items():
        await manager.upload(id_, type_, story.chunks(data))
    assert rig.contents() == changed
    await manager.commit(id_)
    host = {part: before[part] for part in host_files}
    assert rig.contents() == changed | host
    assert rig.guards.all() == {}


async def test_nothing_is_put_back_while_one_file_has_not_come_or_is_no_host_file(rig: Rig, manager: Manager) -> None:
    _, host_files = await story.snapshot(manager)
    story.change_everything(rig)
    before, id_ = rig.contents(), uuid4()
    await manager.put(id_, story.restore_request(host_files))
    await manager.upload(id_, "nvram", story.chunks(host_files["nvram"]))
    with pytest.raises(HostFileNotUploaded):
        await manager.commit(id_)
    await manager.abort(id_)
    assert rig.contents() == before
    ref = story.ref_of("nvram", host_files["nvram"])
    with pytest.raises(InvalidRequest):
        await manager.put(uuid4(), RestoreRequest(vm=VM, host_files=[ref, ref]))
    rig.flags("running")
    with pytest.raises(DomainRunning):
        await manager.put(uuid4(), story.restore_request(host_files))
