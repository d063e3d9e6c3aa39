"""Going back to a snapshot, on real images, NVRAM, TPM state, guards and journal; libvirt is played."""

from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from agent.errors import (
    DomainRunning,
    FrozenFileAltered,
    HashMismatch,
    HostFileNotUploaded,
    ImageRefused,
    StorageFailed,
)
from agent.host import files
from agent.transactions.manager import Manager
from tests.agent.transactions import story
from tests.agent.transactions.rig import Rig, nvram


@pytest.mark.case("R1")
async def test_revert_brings_back_every_byte(rig: Rig, manager: Manager) -> None:
    before = rig.contents()
    taken, host_files = await story.snapshot(manager)
    story.change_everything(rig)
    assert not set(rig.contents().values()) & set(before.values())
    await story.revert(manager, story.revert_request(taken, host_files), host_files)
    assert rig.contents() == before


@pytest.mark.case("R2")
async def test_snapshot_is_never_consumed(rig: Rig, manager: Manager) -> None:
    before = rig.contents()
    taken, host_files = await story.snapshot(manager)
    for pattern in (0x43, 0x44, 0x45):
        story.change_everything(rig, pattern)
        await story.revert(manager, story.revert_request(taken, host_files), host_files)
        assert rig.contents() == before


@pytest.mark.case("R3")
async def test_revert_reaches_every_node_of_a_branched_tree(rig: Rig, manager: Manager) -> None:
    nodes = []
    for pattern in (0x50, 0x51):
        story.change_everything(rig, pattern)
        nodes.append((rig.contents(), *await story.snapshot(manager)))
    await story.revert(manager, story.revert_request(nodes[0][1], nodes[0][2]), nodes[0][2])
    story.change_everything(rig, 0x52)
    nodes.append((rig.contents(), *await story.snapshot(manager)))
    for contents, taken, host_files in [*nodes, *reversed(nodes)]:
        await story.revert(manager, story.revert_request(taken, host_files), host_files)
        assert rig.contents() == contents


@pytest.mark.case("R8")
async def test_undo_point_brings_back_the_state_before_the_revert(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    story.change_everything(rig)
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
    story.change_everything(rig)
    changed = rig.contents()
    asked = story.revert_request(taken, {}, alone=True)
    done = await story.revert(manager, msgspec.structs.replace(asked, volumes=asked.volumes[1:]), host_files)
    assert rig.contents() == {**changed, "vdb": before["vdb"]}
    assert done.kept == ["nvram", "tpm"]


@pytest.mark.case("R4")
async def test_revert_of_a_running_domain_is_refused_before_anything_is_touched(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    before, seen = rig.files(), rig.contents()
    rig.flags("running")
    with pytest.raises(DomainRunning):
        await manager.put(uuid4(), story.revert_request(taken, host_files))
    assert (rig.files(), rig.contents()) == (before, seen)


@pytest.mark.case("R7")
@pytest.mark.parametrize("failing", ["exchange", "define"])
async def test_revert_that_fails_at_its_last_step_leaves_everything_as_it_was(
    rig: Rig, manager: Manager, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    taken, host_files = await story.snapshot(manager)
    story.change_everything(rig)
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


async def test_frozen_file_that_the_domain_was_put_back_on_by_hand_survives_a_revert_without_undo_point(
    rig: Rig, manager: Manager
) -> None:
    first, host_files = await story.snapshot(manager)
    second, _ = await story.snapshot(manager)
    frozen = {volume.target: volume.path for volume in second.volumes}
    present = {target: str(rig.top(target)) for target in rig.targets}
    rig.edit(lambda xml: xml.replace(present["vda"], frozen["vda"]).replace(present["vdb"], frozen["vdb"]))
    for taken in (first, second):
        asked = story.revert_request(taken, host_files, undo=None)
        await story.revert(manager, asked, host_files)
        assert all(Path(path).exists() for path in frozen.values())


async def test_old_top_that_a_snapshot_holds_survives_a_revert_without_undo_point(rig: Rig, manager: Manager) -> None:
    taken, host_files = await story.snapshot(manager)
    tops = [rig.top(target) for target in rig.targets]
    asked = story.revert_request(taken, host_files, undo=None, held=[str(tops[0])])
    await story.revert(manager, asked, host_files)
    assert [top.exists() for top in tops] == [True, False]


@pytest.mark.case("R7")
async def test_undoing_twice_keeps_host_files_that_were_in_place_already(rig: Rig) -> None:
    manager = rig.manager()
    taken, host_files = await story.snapshot(manager)
    before = rig.contents()
    broken = iter([StorageFailed(action="syncing", path="journal", reason="no space left")])

    def full_for_a_moment(name: str) -> None:
        if name == "before journal ended" and (err := next(broken, None)):
            raise err

    manager = rig.manager(full_for_a_moment)
    id_ = uuid4()
    await manager.put(id_, story.revert_request(taken, host_files))
    for type_, data in host_files.items():
        await manager.upload(id_, type_, story.chunks(data))
    rig.hypervisor.failing, rig.hypervisor.error = (
        {"define"},
        lambda: StorageFailed(action="a", path="b", reason="c"),
    )
    with pytest.raises(StorageFailed):
        await manager.commit(id_)
    await manager.tick()
    assert manager.get(id_).state == "aborted"
    assert rig.contents() == before
