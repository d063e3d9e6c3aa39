"""One host in a directory: real images, NVRAM, TPM state, guards and journal; libvirt alone is played.

The played hypervisor keeps its definitions in files, so that it outlives an agent that a test kills.
"""

import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

from lxml import etree

from agent.errors import DomainNotFound, HypervisorUnavailable
from agent.host.event_log import EventLog
from agent.host.hypervisor import DomainState
from agent.host.inventory import Inventory
from agent.limits import Limits
from agent.transactions.expected import Expected
from agent.transactions.guard import Guards
from agent.transactions.manager import Manager
from agent.web.checkpoint import Checkpoint, no_checkpoint

VM = UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11")
NVRAM_BYTES = 540_672
NV_GUID = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")  # EFI_SYSTEM_NV_DATA_FV_GUID in EDK II
DISK_BYTES = 4 * 1024 * 1024


def nvram(fill: bytes = b"\xff") -> bytes:
    """Make a variable store that passes the sanity checks; ``fill`` tells one from another."""
    head = bytearray(0x48 + 16)
    head[0x10:0x20] = NV_GUID.bytes_le
    head[0x20:0x28] = struct.pack("<Q", NVRAM_BYTES)
    head[0x28:0x2C] = b"_FVH"
    head[0x48:0x58] = UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
    return bytes(head) + fill * (NVRAM_BYTES - len(head))


def permall(fill: bytes = b"\x11") -> bytes:
    """Make a swtpm permanent state whose header agrees with its size."""
    size = 6_000
    return struct.pack(">BBHHI", 3, 1, 10, 0, size) + fill * (size - 10)


class PlayedHypervisor:
    """The methods of agent.host.hypervisor.Hypervisor that transactions use, over one directory of XML files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.failing: set[str] = set()
        self.error: Callable[[], Exception] = lambda: HypervisorUnavailable(uri="played", reason="the test says so")

    async def domains(self) -> list[DomainState]:
        return [await self.domain(UUID(path.stem)) for path in sorted(self.directory.glob("*.xml"))]

    async def domain(self, uuid: UUID) -> DomainState:
        self._check("domain")
        root = etree.fromstring(self._path(uuid).read_text())
        flags = set((self._path(uuid).with_suffix(".flags")).read_text().split())
        return DomainState(
            uuid=uuid,
            name=root.findtext("name") or "",
            state="running" if "running" in flags else "paused" if "paused" in flags else "shut-off",
            active=bool(flags & {"running", "paused"}),
            persistent="transient" not in flags,
            managed_save="saved" in flags,
            autostart=False,
        )

    async def inactive_xml(self, uuid: UUID, *, secure: bool = False) -> str:
        del secure
        self._check("inactive_xml")
        return self._path(uuid).read_text()

    async def live_xml(self, uuid: UUID) -> str:
        return await self.inactive_xml(uuid)

    async def define(self, xml: str) -> UUID:
        self._check("define")
        uuid = UUID(etree.fromstring(xml).findtext("uuid") or "")
        temporary = self.directory / "new"
        temporary.write_text(xml)
        flags = self._path(uuid, must_exist=False).with_suffix(".flags")
        flags.touch()
        temporary.replace(flags.with_suffix(".xml"))
        return uuid

    async def undefine(self, uuid: UUID) -> None:
        self._check("undefine")
        for suffix in (".xml", ".flags"):
            self._path(uuid, must_exist=False).with_suffix(suffix).unlink(missing_ok=True)
        self._check("undefine, and say so")

    async def has_secret(self, uuid: UUID) -> bool:
        self._check("has_secret")
        return (self.directory / f"{uuid}.secret").exists()

    def _path(self, uuid: UUID, must_exist: bool = True) -> Path:
        path = self.directory / f"{uuid}.xml"
        if must_exist and not path.exists():
            raise DomainNotFound(vm=str(uuid))
        return path

    def _check(self, call: str) -> None:
        if call in self.failing:
            raise self.error()


class Rig:
    """The host; ``manager()`` gives an agent's heart on it, as often as one dies."""

    def __init__(self, root: Path, disks: int = 2) -> None:
        self.root = root
        self.allowed = self.images = root / "images"
        self.nvram = root / "nvram" / "win11_VARS.fd"
        self.tpm = root / "swtpm" / str(VM)
        self.state_dir = root / "state"
        self.targets = [f"vd{letter}" for letter in "abcdefgh"[:disks]]
        self.hypervisor = PlayedHypervisor(root / "libvirt")

    def build(self) -> "Rig":
        for directory in (self.images, self.nvram.parent, self.tpm / "tpm2", self.hypervisor.directory):
            directory.mkdir(parents=True, exist_ok=True)
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        self.nvram.write_bytes(nvram(b"A"))
        (self.tpm / "tpm2" / "tpm2-00.permall").write_bytes(permall(b"A"))
        for target in self.targets:
            path = self.images / f"{target}.qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(DISK_BYTES)], check=True)
            self.write_disk(target, 0x41, path)
        self.flags("")
        (self.hypervisor.directory / f"{VM}.xml").write_text(self._xml())
        return self

    def _xml(self) -> str:
        disks = "".join(
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
            f"<source file='{self.images}/{target}.qcow2'/><target dev='{target}' bus='virtio'/></disk>"
            for target in self.targets
        )
        return (
            f"<domain type='qemu'><name>win11</name><uuid>{VM}</uuid>"
            f"<os firmware='efi'><type>hvm</type><nvram>{self.nvram}</nvram></os>"
            f"<devices>{disks}<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>"
        )

    def neighbour(self, name: str, image: Path) -> None:
        """Define another domain with one disk and nothing else."""
        vm = uuid4()
        (self.hypervisor.directory / f"{vm}.flags").write_text("")
        (self.hypervisor.directory / f"{vm}.xml").write_text(
            f"<domain type='qemu'><name>{name}</name><uuid>{vm}</uuid><os><type>hvm</type></os>"
            f"<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
            f"<source file='{image}'/><target dev='vda' bus='virtio'/></disk></devices></domain>"
        )

    def edit(self, change: Callable[[str], str]) -> None:
        path = self.hypervisor.directory / f"{VM}.xml"
        path.write_text(change(path.read_text()))

    def flags(self, text: str) -> None:
        (self.hypervisor.directory / f"{VM}.flags").write_text(text)

    def manager(self, checkpoint: Checkpoint = no_checkpoint, **limits: object) -> Manager:
        guards, expected = Guards(self.state_dir), Expected(self.state_dir)
        bounds = Limits(
            state_dir=self.state_dir,
            nvram_dir=self.nvram.parent,
            swtpm_dir=self.tpm.parent,
            allowed_image_dirs=[self.allowed],
            **{"reserve_bytes": 0, **limits},  # type: ignore[arg-type]  # tests name what they change
        )
        inventory = Inventory(self.hypervisor, guards, expected, bounds)
        self.guards, self.events = guards, EventLog(self.state_dir)
        return Manager(
            hypervisor=self.hypervisor,  # type: ignore[arg-type]  # played at the process boundary
            inventory=inventory,
            guards=guards,
            events=self.events,
            limits=bounds,
            checkpoint=checkpoint,
        )

    def lose_host_files(self) -> None:
        """Do as ``virsh undefine --nvram`` does."""
        self.nvram.unlink()
        shutil.rmtree(self.tpm)

    def top(self, target: str, vm: UUID = VM) -> Path:
        """Return the file that a domain's definition names for a disk."""
        root = etree.fromstring((self.hypervisor.directory / f"{vm}.xml").read_text())
        (path,) = root.xpath("devices/disk[target/@dev=$target]/source/@file", target=target)
        return Path(path)

    def write_disk(
        self, target: str, pattern: int, path: Path | None = None, *, at: str = "0", length: str = "64k"
    ) -> None:
        """Write one byte over and over as a guest would."""
        command = f"write -q -P {pattern} {at} {length}"
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path or self.top(target)], check=True)

    def contents(self) -> dict[str, str]:
        """Hash what the domain would see if it started now: every disk, NVRAM and TPM state."""
        seen = {target: raw_sha256(self.top(target)) for target in self.targets}
        seen["nvram"] = hashlib.sha256(self.nvram.read_bytes()).hexdigest() if self.nvram.exists() else "none"
        state = self.tpm / "tpm2" / "tpm2-00.permall"
        seen["tpm"] = hashlib.sha256(state.read_bytes()).hexdigest() if state.exists() else "none"
        return seen

    def files(self) -> set[str]:
        """List every file that a transaction could leave behind, relative to the root."""
        kept = {"journal", "events", "spool", "hook.lock", "expected", "firmware"}
        found = set()
        for directory, _, names in os.walk(self.root):
            for name in names:
                path = (Path(directory) / name).relative_to(self.root)
                if name != ".lock" and not (path.parts[0] == "state" and path.parts[1] in kept):
                    found.add(str(path))
        return found


def raw_sha256(path: Path) -> str:
    """Hash the bytes that a guest reads from an image."""
    raw = path.with_name(path.name + ".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    try:
        return hashlib.sha256(raw.read_bytes()).hexdigest()
    finally:
        raw.unlink()
