"""A domain comes and goes, on real images, NVRAM, TPM state, guards and journal; libvirt is played."""

import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from agent.errors import (
    DomainExists,
    DomainNameRefused,
    DomainRunning,
    FrozenFileAltered,
    HostFileMissing,
    HostFileShared,
    HostUnsuitable,
    HypervisorUnavailable,
    ImageRefused,
)
from agent.transactions.manager import Manager
from agent.wire.host_file import HostFileType
from agent.wire.transaction import DepartRequest, FirmwareFile, FrozenVolume, PlaceRequest
from tests.agent.transactions import story
from tests.agent.transactions.rig import VM, Rig
from tests.agent.transactions.test_kill import Moment, fail_and_kill_at, kill_at, processes, taken_back
from tests.visits import Visit

__all__ = ["processes"]  # a fixture
OWN = {f"libvirt/{VM}.xml", f"libvirt/{VM}.flags", "nvram/win11_VARS.fd", f"swtpm/{VM}/tpm2/tpm2-00.permall"}
KEPT = {f"state/departed/{VM}/{name}" for name in ("domain.xml", "nvram", "tpm")}
Files = dict[HostFileType, bytes]


async def held(manager: Manager) -> tuple[PlaceRequest, Files]:
    """Ask the host that has the domain for all that another needs, and let it be."""
    id_ = uuid4()
    view = await manager.put(id_, DepartRequest(vm=VM))
    files: Files = {item.type: manager.captured(id_, item.type).read_bytes() for item in view.host_files}
    await manager.abort(id_)
    refs = [story.ref_of(type_, data) for type_, data in files.items()]
    return PlaceRequest(vm=VM, name="win11", domain_xml=view.domain_xml, host_files=refs), files


async def emptied(rig: Rig) -> tuple[PlaceRequest, Files]:
    """Let the host be another one, which has the images and nothing else of the domain."""
    request, files = await held(rig.manager())
    rig.lose_host_files()
    for path in rig.hypervisor.directory.glob(f"{VM}.*"):
        path.unlink()
    return request, files


def changed(request: PlaceRequest, **changes: Any) -> PlaceRequest:
    return msgspec.structs.replace(request, **changes)


@pytest.mark.case("P1")
async def test_a_placed_domain_has_its_host_files_before_it_can_start(rig: Rig) -> None:
    before, xml = rig.contents(), (rig.hypervisor.directory / f"{VM}.xml").read_text()
    request, files = await emptied(rig)
    placed = await story.place(rig.manager(), request, files)
    assert (placed.state, rig.contents(), rig.guards.all()) == ("committed", before, {})
    assert (rig.hypervisor.directory / f"{VM}.xml").read_text() == xml


async def test_a_host_file_that_is_here_already_with_the_same_bytes_stays_as_it_is(rig: Rig) -> None:
    request, files = await emptied(rig)
    rig.nvram.write_bytes(files["nvram"])
    inode = rig.nvram.stat().st_ino
    placed = await story.place(rig.manager(), request, files)
    assert (placed.kept, rig.nvram.stat().st_ino) == (["nvram"], inode)


@pytest.mark.case("P1")
async def test_what_a_departed_domain_had_is_kept_on_its_host_and_its_images_stay(rig: Rig) -> None:
    before = rig.files()
    _, files = await held(rig.manager())
    assert rig.files() == before
    await story.depart(rig.manager())
    assert rig.files() == (before - OWN) | KEPT
    assert (rig.state_dir / "departed" / str(VM) / "nvram").read_bytes() == files["nvram"]
    assert rig.guards.all() == {}


async def test_a_departing_domain_leaves_what_the_other_host_uses_in_place(rig: Rig) -> None:
    await story.depart(rig.manager(), keep=["nvram"])
    assert (rig.nvram.exists(), rig.tpm.exists()) == (True, False)


async def test_a_running_domain_does_not_depart(rig: Rig, manager: Manager) -> None:
    rig.flags("running")
    before = rig.files()
    with pytest.raises(DomainRunning):
        await story.depart(manager)
    assert rig.files() == before


async def test_a_domain_that_libvirt_will_not_let_go_of_has_its_host_files_again(rig: Rig, manager: Manager) -> None:
    before, seen = rig.files(), rig.contents()
    rig.hypervisor.failing.add("undefine")
    rig.hypervisor.error = lambda: DomainExists(name="win11", vm=VM)
    with pytest.raises(DomainExists):
        await story.depart(manager)
    assert (rig.files(), rig.contents(), rig.guards.all()) == (before, seen, {})


async def test_a_departure_waits_under_its_guard_for_a_libvirt_that_is_away(rig: Rig, manager: Manager) -> None:
    rig.hypervisor.failing.add("undefine")
    rig.hypervisor.error = lambda: HypervisorUnavailable(uri="played", reason="away")
    view = await story.depart(manager)
    assert (view.state, VM in rig.guards.all()) == ("committing", True)
    rig.hypervisor.failing.clear()
    await manager.tick()
    assert (manager.get(view.id).state, rig.guards.all()) == ("committed", {})


async def test_what_the_new_host_lacks_is_refused_by_name_and_nothing_is_left(rig: Rig, tmp_path: Path) -> None:
    request, files = await emptied(rig)
    manager = rig.manager()
    gone = FirmwareFile(role="loader", path=str(tmp_path / "CODE.fd"), size_bytes=1, sha256="")
    template = tmp_path / "VARS.fd"
    template.write_bytes(b"another build")
    other = FirmwareFile(role="template", path=str(template), size_bytes=1, sha256="")
    emulator = request.domain_xml.replace("<devices>", "<devices><emulator>/nowhere/qemu</emulator>")
    before = rig.files()
    stale = FrozenVolume(target="vda", path=str(rig.images / "vda.qcow2"), fingerprint="1:1")
    for changes, refusal in (
        ({"firmware": [gone]}, HostUnsuitable),
        ({"firmware": [other]}, HostUnsuitable),
        ({"domain_xml": emulator}, HostUnsuitable),
        ({"domain_xml": request.domain_xml.replace("vdb.qcow2", "gone.qcow2")}, ImageRefused),
        ({"name": "another"}, DomainNameRefused),
        ({"volumes": [stale]}, FrozenFileAltered),
        ({"host_files": request.host_files[:1]}, HostFileMissing),
    ):
        with pytest.raises(refusal):
            await story.place(manager, changed(request, **changes), files)
        assert rig.files() == before, changes
    rig.nvram.write_bytes(b"left by another")
    with pytest.raises(DomainNameRefused, match="move it away"):
        await story.place(manager, request, files)
    assert rig.nvram.read_bytes() == b"left by another"


async def test_a_domain_does_not_come_to_an_nvram_file_that_another_one_names(rig: Rig) -> None:
    request, files = await emptied(rig)
    taken = request.domain_xml.replace(str(VM), str(UUID(int=7))).replace("<name>win11<", "<name>twin<")
    (rig.hypervisor.directory / f"{UUID(int=7)}.flags").write_text("")
    (rig.hypervisor.directory / f"{UUID(int=7)}.xml").write_text(taken)
    before = rig.files()
    with pytest.raises(HostFileShared, match="twin"):
        await story.place(rig.manager(), request, files)
    assert rig.files() == before


async def test_an_encrypted_tpm_comes_only_to_a_host_that_has_its_secret(rig: Rig) -> None:
    request, files = await emptied(rig)
    secret = uuid4()
    open_tpm = "<backend type='emulator' version='2.0'/>"
    sealed = f"<backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend>"
    assert open_tpm in request.domain_xml
    request = changed(request, domain_xml=request.domain_xml.replace(open_tpm, sealed))
    before = rig.files()
    with pytest.raises(HostUnsuitable, match=f"the libvirt secret {secret}"):
        await story.place(rig.manager(), request, files)
    assert rig.files() == before
    (rig.hypervisor.directory / f"{secret}.secret").touch()
    assert (await story.place(rig.manager(), request, files)).state == "committed"


async def test_what_was_left_when_the_domain_went_makes_room_when_it_comes_back(rig: Rig) -> None:
    request, files = await held(rig.manager())
    before = rig.files()
    await story.depart(rig.manager(), keep=["nvram", "tpm"])
    newer = files["nvram"][:-1] + b"!"
    refs = [story.ref_of("nvram", newer), *(ref for ref in request.host_files if ref.type == "tpm")]
    placed = await story.place(rig.manager(), changed(request, host_files=refs), {**files, "nvram": newer})
    assert (placed.state, placed.kept, rig.nvram.read_bytes()) == ("committed", ["tpm"], newer)
    assert rig.files() == before | KEPT


@pytest.mark.parametrize("taken", ["uuid", "name"])
async def test_a_domain_that_is_here_already_is_not_touched(rig: Rig, taken: str) -> None:
    request, files = await held(rig.manager())
    if taken == "name":
        xml = request.domain_xml.replace(str(VM), str(UUID(int=7)))
        request = changed(request, vm=UUID(int=7), domain_xml=xml)
    before = rig.files()
    with pytest.raises(DomainExists):
        await story.place(rig.manager(), request, files)
    assert rig.files() == before


@pytest.mark.case("F1")
@pytest.mark.parametrize("kind", ["place", "depart"])
async def test_agent_killed_at_every_point_of_a_move_leaves_all_of_the_domain_or_none(
    tmp_path: Path, processes: ForkServerContext, kind: str, visit: Visit
) -> None:
    async def build(root: Path) -> tuple[Rig, tuple[bytes, Files]]:
        rig = Rig(root).build()
        if kind == "depart":
            return rig, (b"", {})
        request, files = await emptied(rig)
        return rig, (msgspec.json.encode(request), files)

    rig, prepared = await build(tmp_path / "unharmed")
    executioner = story.Executioner()
    await story.run(rig.manager(executioner), kind, *prepared)
    assert len(executioner.points) > 12
    ends = set()
    for number, point in enumerate(executioner.points):
        rig, prepared = await build(tmp_path / str(number))
        before = rig.files()
        assert kill_at(processes, rig.root, kind, number, prepared) == -signal.SIGKILL, point
        await rig.manager().recover()
        after = rig.files()
        assert rig.guards.all() == {}, point
        assert after in (before, before | OWN if kind == "place" else (before - OWN) | KEPT), point
        ends.add(after == before)
        visit(point)
    visit(f"transaction {kind}")
    assert ends == {True, False}


@pytest.mark.case("F1")
async def test_agent_killed_while_it_takes_a_departure_back_leaves_the_domain_as_it_was(
    tmp_path: Path, processes: ForkServerContext, visit: Visit
) -> None:
    """libvirt had undefined it, and told an error all the same."""
    points = await taken_back(Rig(tmp_path / "unharmed").build(), "depart", (b"", {}), "after journal rollback")
    moment = Moment(Rig(tmp_path / "killed").build(), (b"", {}))
    rig = moment.rig
    for number, point in points:
        moment.again()
        assert fail_and_kill_at(processes, rig.root, "depart", number, moment.prepared) == -signal.SIGKILL, point
        await rig.manager().recover()
        assert (rig.files(), rig.contents(), rig.guards.all()) == (moment.before, moment.old, {}), point
        visit(point)
