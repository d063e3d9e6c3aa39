"""Exports and imports on real images, NVRAM, TPM state, guards and journal; libvirt is played."""

import asyncio
import errno
import os
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest
from lxml import etree

from agent.errors import (
    DirectoryRefused,
    DomainBusy,
    DomainExists,
    DomainNameRefused,
    DomainUnreadable,
    FrozenFileAltered,
    HostFileDamaged,
    HostFileNotFound,
    HostUnsuitable,
    ImageNotFound,
    ImageNotReceived,
    ImageRefused,
    LeaseExpired,
    NoSpace,
    Released,
    StorageFailed,
)
from agent.host import qcow2
from agent.transactions.manager import Manager
from agent.transactions.transfers import Transfers
from agent.web.errors import Error, InvalidRequest
from agent.wire.archive import SentImage
from agent.wire.host_file import HostFileType
from agent.wire.transaction import Transaction
from tests.agent.transactions import story
from tests.agent.transactions.rig import VM, Rig, raw_sha256
from tests.agent.transactions.story import CLONE, Images, chunks

Archive = tuple[Transaction, list[SentImage], Images, dict[HostFileType, bytes]]


async def archived(rig: Rig, manager: Manager, *, flat: bool = False) -> Archive:
    """Take two snapshots with writing in between, and export the second."""
    await story.snapshot(manager)
    for target in rig.targets:
        rig.write_disk(target, 0x51, at="128k")
    taken, host_files = await story.snapshot(manager)
    told, images = await story.export(manager, story.export_request(taken, flat=flat))
    return taken, told, images, host_files


def lose(rig: Rig) -> None:
    """Lose the domain with all that belongs to it, as on another host, which has never seen a TPM."""
    for path in (*rig.hypervisor.directory.glob(f"{VM}.*"), *rig.images.iterdir(), rig.nvram):
        path.unlink()
    subprocess.run(["rm", "-r", rig.tpm.parent], check=True)


def write_to(path: str) -> str:
    """Try to write as QEMU would; return what it says."""
    command = ["qemu-io", "-f", "qcow2", "-c", "write 0 64k", path]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def stray(rig: Rig) -> list[str]:
    return sorted(path for path in rig.files() if ".coldframe-" in path)


@pytest.mark.parametrize("flat", [True, False])
async def test_what_was_exported_is_imported_byte_for_byte(rig: Rig, manager: Manager, flat: bool) -> None:
    taken, told, images, host_files = await archived(rig, manager, flat=flat)
    frozen = rig.contents()
    assert len(told) == (2 if flat else 4)
    assert stray(rig) == []
    lose(rig)
    done = await story.import_(manager, story.import_request(taken.domain_xml, told, host_files), images, host_files)
    assert (done.state, done.kind) == ("committed", "import")
    assert rig.contents() == frozen
    for volume in done.volumes:
        assert qcow2.read_header(Path(volume.overlay)).backing == volume.path
        assert volume.fingerprint == f"{Path(volume.path).stat().st_size}:{Path(volume.path).stat().st_mtime_ns}"
        assert Path(volume.path).stat().st_mode & 0o777 == 0o600
    assert stray(rig) == []
    assert rig.guards.all() == {}
    assert "tpm=" in (rig.state_dir / "expected" / str(VM)).read_text()
    again, _ = await story.snapshot(manager)
    assert again.state == "committed"


async def test_exported_chain_can_be_read_where_it_is_unpacked(rig: Rig, manager: Manager, tmp_path: Path) -> None:
    _, told, images, _ = await archived(rig, manager)
    for image in told:
        name = f"{image.target}.qcow2" if image.position == 0 else f"{image.target}.{image.position}.qcow2"
        (tmp_path / name).write_bytes(images[image.target, image.position])
    assert {target: raw_sha256(tmp_path / f"{target}.qcow2") for target in rig.targets} == {
        target: raw_sha256(rig.top(target)) for target in rig.targets
    }
    assert str(rig.root).encode() not in b"".join(images.values())


async def test_export_of_a_running_domain_needs_no_guard_and_keeps_writers_out(rig: Rig, manager: Manager) -> None:
    taken, _ = await story.snapshot(manager)
    rig.flags("running")
    id_ = uuid4()
    await manager.put(id_, story.export_request(taken))
    assert rig.guards.all() == {}
    frozen = taken.volumes[0].path
    assert "lock" in write_to(frozen)
    with pytest.raises(DomainBusy):
        await manager.put(uuid4(), story.delete_request(taken, {}))
    assert len(stray(rig)) == len(rig.targets)
    await manager.abort(id_)
    assert stray(rig) == []
    with pytest.raises(Error):
        await Transfers(manager).images(id_)


async def test_export_of_a_frozen_file_that_was_written_to_is_refused(rig: Rig, manager: Manager) -> None:
    taken, _ = await story.snapshot(manager)
    rig.write_disk("vda", 0x70, Path(taken.volumes[0].path))
    with pytest.raises(FrozenFileAltered):
        await manager.put(uuid4(), story.export_request(taken))
    assert stray(rig) == []


async def test_export_without_room_for_flat_files_is_refused_before_one_is_made(rig: Rig, manager: Manager) -> None:
    taken, _ = await story.snapshot(manager)
    small = rig.manager(reserve_bytes=1 << 60)
    with pytest.raises(NoSpace):
        await small.put(uuid4(), story.export_request(taken))
    assert stray(rig) == []


async def test_export_whose_lease_runs_out_ends_what_is_being_read(rig: Rig, manager: Manager) -> None:
    taken, _ = await story.snapshot(manager)
    id_, transfers = uuid4(), Transfers(manager)
    await manager.put(id_, story.export_request(taken, lease_s=0.0))
    _, pieces = await transfers.send(id_, "vda", 0)
    await manager.tick()
    with pytest.raises(Error) as caught:
        await anext(pieces)
    assert caught.value.problem().code == LeaseExpired.code
    assert stray(rig) == []
    another = uuid4()
    await manager.put(another, story.export_request(taken))
    with pytest.raises(ImageNotFound):
        await transfers.send(another, "vdz", 0)


async def test_import_with_a_new_identity_stands_beside_the_old_one(rig: Rig, manager: Manager) -> None:
    taken, told, images, host_files = await archived(rig, manager)
    frozen = rig.contents()
    asked = story.import_request(taken.domain_xml, told, host_files, vm=CLONE, name="other", renew=True)
    await story.import_(manager, asked, images, host_files)
    root = etree.fromstring((rig.hypervisor.directory / f"{CLONE}.xml").read_text())
    assert (root.findtext("name"), root.findtext("uuid")) == ("other", str(CLONE))
    assert {target: raw_sha256(rig.top(target, CLONE)) for target in rig.targets} == {
        target: frozen[target] for target in rig.targets
    }
    assert rig.contents() == frozen
    assert root.findtext("os/nvram") == str(rig.nvram.parent / f"{CLONE}_VARS.fd")


def with_header(data: bytes, offset: int, field: bytes) -> bytes:
    return data[:offset] + field + data[offset + len(field) :]


def with_backing(data: bytes, name: bytes) -> bytes:
    """Write another backing file name over the one that is there."""
    at, length = struct.unpack_from(">QI", data, 8)
    return with_header(with_header(data, at, name.ljust(length, b"\0")), 16, struct.pack(">I", len(name)))


def with_two_in_one_place(data: bytes) -> bytes:
    """Let the L1 table say that the first L2 table is where the refcounts are."""
    (table,) = struct.unpack_from(">Q", data, 40)
    return with_header(data, table, struct.pack(">Q", 1 << 63 | 1 << 16))


HARMS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "not an image": (lambda data: b"x" * len(data), "not a qcow2 image"),
    "a byte too few": (lambda data: data[:-1], "bytes arrived"),
    "a byte too many": (lambda data: data + b"x", "more than the"),
    "nothing": (lambda data: b"", "0 of the"),
    "a backing file outside": (lambda data: with_backing(data, b"/etc/shadow"), "'/etc/shadow'"),
    "a backing file upwards": (lambda data: with_backing(data, b"../vda.1"), r"'\.\./vda\.1'"),
    "a protocol": (lambda data: with_backing(data, b"nbd:h:10809"), "'nbd:h:10809'"),
    "json": (lambda data: with_backing(data, b"json:{}"), r"'json:\{\}'"),
    "no backing file": (lambda data: with_header(data, 8, bytes(12)), "None"),
    "another size": (lambda data: with_header(data, 24, struct.pack(">Q", 1 << 21)), "shows a disk of"),
    "an external data file": (lambda data: with_header(data, 72, struct.pack(">Q", 4)), "external data"),
    "a corrupt mark": (lambda data: with_header(data, 72, struct.pack(">Q", 2)), "corrupt or dirty"),
    "encryption": (lambda data: with_header(data, 32, struct.pack(">I", 2)), "encrypted"),
    "tables that disagree": (with_two_in_one_place, r"qemu-img check finds \d+ errors"),
    "internal snapshots": (lambda data: with_header(data, 60, struct.pack(">I", 1)), "internal snapshots"),
}


@pytest.mark.case("X7")
@pytest.mark.parametrize("harm", HARMS)
async def test_hostile_image_is_refused_and_the_import_leaves_nothing(rig: Rig, manager: Manager, harm: str) -> None:
    taken, told, images, host_files = await archived(rig, manager)
    lose(rig)
    change, words = HARMS[harm]
    id_, transfers = uuid4(), Transfers(manager)
    await manager.put(id_, story.import_request(taken.domain_xml, told, host_files))
    with pytest.raises(ImageRefused, match=words):
        await transfers.receive(id_, "vda", 0, chunks(change(images["vda", 0])))
    with pytest.raises(ImageNotReceived):
        await commit_with_host_files(manager, id_, host_files)
    await manager.abort(id_)
    assert rig.files() == set()


async def commit_with_host_files(manager: Manager, id_: UUID, host_files: dict[HostFileType, bytes]) -> None:
    for type_, data in host_files.items():
        await manager.upload(id_, type_, chunks(data))
    await manager.commit(id_)


REFUSED: dict[str, tuple[dict[str, object], type[Error]]] = {
    "another VM's XML": ({"name": "win12"}, DomainUnreadable),
    "another UUID's XML": ({"vm": uuid4()}, DomainUnreadable),
    "no XML": ({"domain_xml": "hello"}, DomainUnreadable),
    "an entity": ({"domain_xml": "<!DOCTYPE d [<!ENTITY x SYSTEM '/etc/passwd'>]><domain/>"}, DomainUnreadable),
    "a name that leads out": ({"name": "../x", "renew": True, "vm": uuid4()}, DomainNameRefused),
    "a directory outside": ({"directory": "/etc"}, DirectoryRefused),
    "a directory upwards": ({"directory": "{images}/../.."}, DirectoryRefused),
    "no directory": ({"directory": "{images}/none"}, DirectoryRefused),
    "a relative directory": ({"directory": "images"}, DirectoryRefused),
}


@pytest.mark.case("X7")
@pytest.mark.parametrize("what", REFUSED)
async def test_import_that_cannot_be_is_refused_before_anything_is_made(rig: Rig, manager: Manager, what: str) -> None:
    taken, told, _, host_files = await archived(rig, manager)
    lose(rig)
    changes, error = REFUSED[what]
    if "directory" in changes:
        changes = {"directory": str(changes["directory"]).replace("{images}", str(rig.images))}
    asked = story.import_request(str(changes.pop("domain_xml", taken.domain_xml)), told, host_files, **changes)
    with pytest.raises(error):
        await manager.put(uuid4(), asked)
    assert rig.files() == set()
    assert rig.guards.all() == {}


async def test_import_of_an_encrypted_tpm_needs_its_secret(rig: Rig, manager: Manager) -> None:
    taken, told, images, host_files = await archived(rig, manager)
    lose(rig)
    secret = uuid4()
    open_tpm = '<backend type="emulator" version="2.0"/>'
    sealed = f'<backend type="emulator" version="2.0"><encryption secret="{secret}"/></backend>'
    assert open_tpm in taken.domain_xml
    asked = story.import_request(taken.domain_xml.replace(open_tpm, sealed), told, host_files)
    with pytest.raises(HostUnsuitable, match=f"the libvirt secret {secret}"):
        await manager.put(uuid4(), asked)
    assert (rig.files(), rig.guards.all()) == (set(), {})
    (rig.hypervisor.directory / f"{secret}.secret").touch()
    assert (await story.import_(manager, asked, images, host_files)).state == "committed"


async def test_import_beside_the_same_domain_is_refused(rig: Rig, manager: Manager) -> None:
    taken, told, _, host_files = await archived(rig, manager)
    before = rig.files()
    with pytest.raises(DomainExists):
        await manager.put(uuid4(), story.import_request(taken.domain_xml, told, host_files))
    asked = story.import_request(taken.domain_xml, told, host_files, vm=CLONE, renew=True)
    with pytest.raises(DomainExists):
        await manager.put(uuid4(), asked)
    with pytest.raises(InvalidRequest):
        await manager.put(uuid4(), story.import_request(taken.domain_xml, [*told, told[0]], host_files))
    assert rig.files() == before


@pytest.mark.case("X7")
async def test_archive_does_not_choose_where_firmware_state_is_written(rig: Rig, manager: Manager) -> None:
    taken, told, images, host_files = await archived(rig, manager)
    lose(rig)
    aim = rig.root / "aim"
    xml = taken.domain_xml.replace(str(rig.nvram), str(aim))
    await story.import_(manager, story.import_request(xml, told, host_files), images, host_files)
    root = etree.fromstring((rig.hypervisor.directory / f"{VM}.xml").read_text())
    assert root.findtext("os/nvram") == str(rig.nvram.parent / f"{VM}_VARS.fd")
    assert not aim.exists()


@pytest.mark.case("X7")
async def test_damaged_host_file_of_an_archive_is_refused(rig: Rig, manager: Manager) -> None:
    taken, told, _, host_files = await archived(rig, manager)
    lose(rig)
    bad = {**host_files, "nvram": b"x" * 1000}
    id_ = uuid4()
    await manager.put(id_, story.import_request(taken.domain_xml, told, bad))
    with pytest.raises(HostFileDamaged):
        await manager.upload(id_, "nvram", chunks(bad["nvram"]))
    await manager.abort(id_)
    bios = taken.domain_xml.replace(f"<nvram>{rig.nvram}</nvram>", "").replace(' firmware="efi"', "")
    with pytest.raises(HostFileNotFound):
        await manager.put(uuid4(), story.import_request(bios, told, host_files))
    assert rig.files() == set()


@pytest.mark.case("F5")
async def test_directory_that_cannot_be_listed_is_named_and_nothing_is_begun(
    rig: Rig, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, told, images, host_files = await archived(rig, manager)
    lose(rig)
    asked = story.import_request(taken.domain_xml, told, host_files)

    def refuse(path: Path) -> list[Path]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    rig.tpm.parent.mkdir(exist_ok=True)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", refuse)
        with pytest.raises(StorageFailed, match=str(rig.tpm.parent)):
            await manager.put(uuid4(), asked)
    assert (rig.files(), rig.guards.all()) == (set(), {})
    assert (await story.import_(manager, asked, images, host_files)).state == "committed"


async def test_import_without_room_is_refused_with_need_and_have(rig: Rig, manager: Manager) -> None:
    taken, told, _, host_files = await archived(rig, manager)
    lose(rig)
    small = rig.manager(reserve_bytes=1 << 60)
    with pytest.raises(NoSpace):
        await small.put(uuid4(), story.import_request(taken.domain_xml, told, host_files))
    assert rig.files() == set()


@pytest.mark.parametrize("ending", ["abort", "lease"])
async def test_import_that_ends_while_an_image_is_coming_leaves_nothing(
    rig: Rig, manager: Manager, ending: str
) -> None:
    taken, told, images, host_files = await archived(rig, manager)
    lose(rig)
    id_, transfers = uuid4(), Transfers(manager)
    lease_s = 0.0 if ending == "lease" else 60.0
    await manager.put(id_, story.import_request(taken.domain_xml, told, host_files, lease_s=lease_s))
    half_way, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        data = images["vda", 0]
        yield data[:100]
        half_way.set()
        await go_on.wait()
        yield data[100:]

    coming = asyncio.create_task(transfers.receive(id_, "vda", 0, slowly()))
    await half_way.wait()
    with pytest.raises(ImageRefused, match="being received"):
        await transfers.receive(id_, "vda", 0, chunks(b""))
    await (manager.abort(id_) if ending == "abort" else manager.tick())
    go_on.set()
    with pytest.raises(Error) as caught:
        await coming
    assert caught.value.problem().code in {Released.code, LeaseExpired.code}
    assert rig.files() == set()


async def test_image_that_comes_again_and_breaks_off_is_missing_until_it_comes_whole(
    rig: Rig, manager: Manager
) -> None:
    taken, told, images, host_files = await archived(rig, manager)
    lose(rig)
    id_, transfers = uuid4(), Transfers(manager)
    await manager.put(id_, story.import_request(taken.domain_xml, told, host_files))
    for (target, position), data in images.items():
        await transfers.receive(id_, target, position, chunks(data))
    for type_, data in host_files.items():
        await manager.upload(id_, type_, chunks(data))
    with pytest.raises(ImageRefused, match="bytes arrived"):
        await transfers.receive(id_, "vda", 0, chunks(images["vda", 0][:-1]))
    with pytest.raises(ImageNotReceived, match="vda"):
        await manager.commit(id_)
    await transfers.receive(id_, "vda", 0, chunks(images["vda", 0]))
    staged = sorted(path for path in rig.images.iterdir() if path.name.startswith(".coldframe-"))
    assert all("lock" in write_to(str(path)) for path in staged)
    assert (await manager.commit(id_)).state == "committed"


async def test_image_is_written_with_holes_where_it_has_zeros(rig: Rig, manager: Manager) -> None:
    taken, told, images, host_files = await archived(rig, manager, flat=True)
    lose(rig)
    padded = {key: data + bytes(8 << 20) for key, data in images.items()}
    larger = [msgspec.structs.replace(one, size_bytes=one.size_bytes + (8 << 20)) for one in told]
    done = await story.import_(manager, story.import_request(taken.domain_xml, larger, host_files), padded, host_files)
    for volume in done.volumes:
        facts = Path(volume.path).stat()
        assert facts.st_size > 8 << 20
        assert facts.st_blocks * 512 < 2 << 20
