"""Virtual machines as one host sees them, with their disks."""

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from agent.wire.base import Answer

VmState = Literal["running", "paused", "starting", "shut-off", "unknown"]
Firmware = Literal["uefi", "bios"]


class Image(Answer, kw_only=True, frozen=True):
    """One file of a disk's chain, read from its own header and never probed beyond it.

    ``fingerprint`` is ``<size>:<mtime in ns>`` of the file; it changes when anything writes to the file.
    """

    path: str
    format: str
    virtual_size_bytes: int
    allocated_bytes: int
    backing: str | None = None
    backing_format: str | None = None
    fingerprint: str = ""

    @classmethod
    def example(cls) -> "Image":
        """Return an example for documentation and tests."""
        return cls(
            path="/var/lib/libvirt/images/win11.qcow2",
            format="qcow2",
            virtual_size_bytes=68_719_476_736,
            allocated_bytes=21_474_836_480,
            fingerprint="21478375424:1793611800000000000",
        )


class Disk(Answer, kw_only=True, frozen=True):
    """One disk of a domain. ``chain`` runs from the top file to the root; ``problem`` says why it is unreadable: the
    chain is then empty, or as it was last seen.

    ``excluded_because`` names the reason a snapshot cannot cover the disk (raw, block, network, read-only,
    shareable, no medium, ``snapshot='no'``), null where it can.
    """

    target: str
    path: str | None
    format: str | None
    virtual_size_bytes: int | None = None
    chain_depth: int = 0
    excluded_because: str | None = None
    chain: list[Image] = []
    problem: str | None = None

    @classmethod
    def example(cls) -> "Disk":
        """Return an example for documentation and tests."""
        top = Image.example()
        return cls(
            target="vda",
            path=top.path,
            format="qcow2",
            virtual_size_bytes=top.virtual_size_bytes,
            chain_depth=1,
            chain=[top],
        )


class Guard(Answer, kw_only=True, frozen=True):
    """The persistent mark that keeps one domain from starting while work on it is under way."""

    transaction: UUID
    kind: str
    since: datetime

    @classmethod
    def example(cls) -> "Guard":
        """Return an example for documentation and tests."""
        return cls(
            transaction=UUID("0f7c2c54-6a63-4a0e-9d0a-6ad2a0f3c0de"),
            kind="snapshot",
            since=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
        )


class HostVm(Answer, kw_only=True, frozen=True):
    """One libvirt domain on one host. ``tpm`` is the emulated version; ``nvram`` the path libvirt will use.

    ``problem`` says why libvirt's definition could not be read; the other facts are then the last known ones.
    """

    uuid: UUID
    name: str
    state: VmState
    persistent: bool
    managed_save: bool
    firmware: Firmware
    tpm: Literal["2.0", "1.2"] | None
    nvram: str | None
    disks: list[Disk]
    guard: Guard | None = None
    domain_xml: str = ""
    problem: str | None = None

    @classmethod
    def example(cls) -> "HostVm":
        """Return an example for documentation and tests."""
        return cls(
            uuid=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            name="win11",
            state="shut-off",
            persistent=True,
            managed_save=False,
            firmware="uefi",
            tpm="2.0",
            nvram="/var/lib/libvirt/qemu/nvram/win11_VARS.fd",
            disks=[Disk.example()],
            domain_xml="<domain type='kvm'><name>win11</name></domain>",
        )
