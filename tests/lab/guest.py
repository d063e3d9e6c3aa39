"""A VM of a private host: UEFI, TPM 2.0 and qcow2 disks, under software emulation.

It has no operating system: OVMF's own shell on the serial console sets UEFI variables and reads and writes files
on the first disk, which carries a FAT file system (``fs0:``). 128 MiB and no network card keep its start short.
"""

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4
from xml.sax.saxutils import escape, quoteattr

from tests.lab import disks
from tests.lab.console import Console
from tests.lab.errors import LabError
from tests.lab.paths import IMAGES, NVRAM, SWTPM, ovmf
from tests.lab.tpm import Tpm
from tests.lab.waiting import wait_until

if TYPE_CHECKING:
    from tests.lab.host import LabHost

#: The vendor GUID of the variables that the tests set.
VENDOR = "c01df4a3-0000-4000-8000-000000000001"
MEMORY_MIB = 128

DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  {os}
  <features><acpi/></features>
  <cpu mode='custom' match='exact'><model fallback='allow'>qemu64</model></cpu>
  <on_reboot>destroy</on_reboot>
  <devices>
    {disks}
    <controller type='usb' model='none'/>
    <serial type='unix'>
      <source mode='bind' path={console}/>
      <log file={log} append='on'/>
      <target port='0'/>
    </serial>
    {tpm}
    {devices}
    <memballoon model='none'/>
  </devices>
</domain>
"""
DISK = """<disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file={path}/><target dev='{target}' bus='virtio'/>
    </disk>"""
TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
TYPE = "<type arch='x86_64' machine='q35'>hvm</type>"
BIOS = f"<os>{TYPE}</os>"
UEFI_AUTO = f"""<os firmware='efi'>{TYPE}
    <firmware><feature enabled='no' name='secure-boot'/></firmware></os>"""
UEFI_EXPLICIT = f"""<os>{TYPE}
    <loader readonly='yes' type='pflash'>{{code}}</loader>
    <nvram template='{{template}}'>{{nvram}}</nvram></os>"""


@dataclass(frozen=True)
class Shape:
    """What a guest is made of.

    ``firmware``: ``auto`` lets libvirt choose it, so the inactive XML names no NVRAM; ``explicit`` names firmware
    and an NVRAM file called after the UUID. ``devices`` is further XML below ``<devices>``, such as a CD-ROM.
    """

    name: str
    disks: int = 2
    uefi: bool = True
    tpm: bool = True
    size_mib: int = 32
    firmware: str = "auto"
    uuid: UUID | None = None
    devices: str = ""


def domain_xml(shape: Shape, uuid: UUID, images: list[tuple[str, Path]]) -> str:
    """Return the domain XML of ``shape`` on these disks, given as target and path."""
    system = UEFI_AUTO if shape.uefi else BIOS
    if shape.uefi and shape.firmware == "explicit":
        code, template = ovmf()
        system = UEFI_EXPLICIT.format(code=code, template=template, nvram=NVRAM / f"{uuid}.fd")
    return DOMAIN.format(
        name=escape(shape.name),
        uuid=uuid,
        memory=MEMORY_MIB,
        os=system,
        disks="\n    ".join(DISK.format(path=quoteattr(str(path)), target=target) for target, path in images),
        console=quoteattr(f"/run/console-{uuid}"),
        log=quoteattr(f"/var/log/console-{uuid}.log"),
        tpm=TPM if shape.tpm else "",
        devices=shape.devices,
    )


class Guest:
    """One VM. Paths are as seen inside the host; map them with ``host.path``."""

    def __init__(self, host: "LabHost", shape: Shape, uuid: UUID) -> None:
        self.host, self.shape, self.uuid, self.name = host, shape, uuid, shape.name
        self.console = Console(host.path(f"/run/console-{uuid}"))

    @classmethod
    def define(cls, host: "LabHost", shape: Shape) -> "Guest":
        """Make its disks, the first with a FAT file system, and define it."""
        uuid = shape.uuid or uuid4()
        images = [(f"vd{chr(ord('a') + n)}", IMAGES / f"{uuid}-{n}.qcow2") for n in range(shape.disks)]
        for number, (_, path) in enumerate(images):
            disks.create(path, shape.size_mib, host.run, fat=number == 0)
        host.virsh("define", "/dev/stdin", input=domain_xml(shape, uuid, images))
        return cls(host, shape, uuid)

    # running

    def state(self) -> str:
        """Return libvirt's word: ``running``, ``shut off``, ``paused`` …"""
        return self.host.virsh("domstate", str(self.uuid)).stdout.strip()

    def start(self) -> None:
        """Start it and connect to its console; raises LabError with virsh's words when the start is refused."""
        self.console.close()
        self.host.virsh("start", str(self.uuid))
        self.console.connect()

    def wait_shell(self, timeout_s: float = 90) -> str:
        """Wait for the UEFI shell; returns what the console showed on the way."""
        return self.console.wait_shell(timeout_s)

    def boot(self) -> None:
        """Start it and wait for the UEFI shell; once more where the firmware met a device that did not answer in time.

        A TPM that is slow on a busy machine is such a device. What is broken for good fails again.
        """
        self.start()
        try:
            self.wait_shell()
        except LabError as err:
            if "Device Error" not in str(err):
                raise
            self.destroy()
            self.wait_off()
            self.start()
            self.wait_shell()

    def shell(self, line: str, timeout_s: float = 30) -> str:
        """Run one command in the UEFI shell and return its output."""
        return self.console.command(line, timeout_s)

    def shutdown(self, timeout_s: float = 30) -> None:
        """Power off from the UEFI shell and wait until libvirt says so."""
        self.console.send("reset -s\r")
        self.wait_off(timeout_s)

    def destroy(self) -> None:
        """Cut the power; one that is off already stays so."""
        self.host.virsh("destroy", str(self.uuid), check=False)
        self.wait_off()

    def wait_off(self, timeout_s: float = 30) -> None:
        """Wait until it is shut off, hooks included."""
        wait_until(f"the power-off of {self.name}", lambda: self.state() == "shut off", timeout_s)
        self.console.close()

    def undefine(self) -> None:
        """Destroy and undefine it with its NVRAM and TPM; the disks stay."""
        self.destroy()
        self.host.virsh("undefine", "--nvram", "--managed-save", str(self.uuid))

    def remove(self) -> None:
        """Leave nothing of it behind, whatever state it is in; its first disks and their overlays go too."""
        self.console.close()
        self.host.virsh("destroy", str(self.uuid), check=False)
        self.host.virsh("undefine", "--nvram", "--managed-save", str(self.uuid), check=False)
        for image in self.host.path(IMAGES).glob(f"*{self.uuid}*"):
            image.unlink()
        self.host.guests.remove(self)

    # in the UEFI shell

    def set_variable(self, name: str, text: str) -> None:
        """Set a UEFI variable that is kept in NVRAM; ``text`` has no double quote."""
        said = self.shell(f'setvar {name} -guid {VENDOR} -nv -bs =L"{text}"')
        if said.strip():
            raise LabError(f"setvar {name}: {said}")

    def get_variable(self, name: str) -> str | None:
        """Return a UEFI variable that ``set_variable`` set, or None."""
        said = self.shell(f"setvar {name} -guid {VENDOR}")
        _, found, dump = said.partition("Bytes")
        if not found:
            return None
        return bytes.fromhex("".join(re.findall(r"[0-9A-F]", dump))).decode("utf-16-le")

    def write_file(self, name: str, text: str) -> None:
        """Write one line of text to a file on the first disk."""
        said = self.shell(f"echo {text} >a fs0:\\{name}")
        if said.strip():
            raise LabError(f"echo to {name}: {said}")

    def read_file(self, name: str) -> str | None:
        """Return the text of a file on the first disk without the last line's end, or None if there is none."""
        said = self.shell(f"type fs0:\\{name}")
        return None if "Cannot open file" in said or "not found" in said else said.strip("\n")

    # at rest

    def xml(self) -> ET.Element:
        """Return the inactive domain XML."""
        text = self.host.virsh("dumpxml", "--inactive", str(self.uuid)).stdout
        return ET.fromstring(text)  # noqa: S314 - our own libvirtd wrote it

    def disk_path(self, target: str) -> Path:
        """Return the present top file of a disk, such as ``vda``."""
        source = self.xml().find(f"./devices/disk/target[@dev='{target}']/../source")
        if source is None:
            raise LabError(f"{self.name} has no disk {target}")
        return Path(source.get("file", ""))

    def disk(self, target: str) -> disks.Disk:
        """Return what works on the contents of a disk while the guest is off."""
        return disks.Disk(self.disk_path(target), self.host.run)

    @property
    def nvram(self) -> Path:
        """The NVRAM file; it exists after the first start."""
        if self.shape.firmware == "explicit":
            return NVRAM / f"{self.uuid}.fd"
        return NVRAM / f"{self.name}_VARS.fd"

    @property
    def tpm_dir(self) -> Path:
        """The directory that holds the TPM's files; it exists after the first start."""
        return SWTPM / str(self.uuid) / "tpm2"

    @property
    def tpm(self) -> Tpm:
        """Its TPM, for use while it is off."""
        return Tpm(self.host.path(self.tpm_dir))
