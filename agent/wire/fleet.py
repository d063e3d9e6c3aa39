"""Hosts and VMs as the controller knows them."""

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from agent.wire.base import Answer, Request
from agent.wire.clone import CloneOrigin
from agent.wire.host import HostFacts
from agent.wire.host_file import HostFileType
from agent.wire.vm import Disk, Firmware, VmState


class Host(Answer, kw_only=True, frozen=True):
    """One enrolled KVM host. ``reachable`` is as of ``last_seen_at``; ``error`` says why it is not."""

    name: str
    url: str
    reachable: bool
    last_seen_at: datetime | None
    error: str | None
    event_cursor: int
    facts: HostFacts | None
    vms: int

    @classmethod
    def example(cls) -> "Host":
        """Return an example for documentation and tests."""
        return cls(
            name="kvm1",
            url="https://kvm1.example.org:7701",
            reachable=True,
            last_seen_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
            error=None,
            event_cursor=41,
            facts=HostFacts.example(),
            vms=3,
        )


class AddHost(Request, kw_only=True, frozen=True):
    """The body of ``POST /v1/hosts``. ``url`` is ``https://…``, ``http://…`` or ``unix:///path``.

    ``agent_token`` is the secret in the agent's token file; ``fingerprint`` pins its certificate (SHA-256, hex).
    """

    name: str
    url: str
    agent_token: str
    fingerprint: str | None = None

    @classmethod
    def example(cls) -> "AddHost":
        """Return an example for documentation and tests."""
        return cls(
            name="kvm1",
            url="https://kvm1.example.org:7701",
            agent_token="the-secret-in-the-agents-token-file",  # noqa: S106 - an example
        )


class ChangeHost(Request, kw_only=True, frozen=True):
    """The body of ``PATCH /v1/hosts/{name}``. What is null stays as it is; an empty ``fingerprint`` takes the pin off.

    ``name`` is a new name. The agent at a new ``url`` must be the one that was enrolled.
    """

    name: str | None = None
    url: str | None = None
    agent_token: str | None = None
    fingerprint: str | None = None

    @classmethod
    def example(cls) -> "ChangeHost":
        """Return an example for documentation and tests."""
        return cls(url="https://kvm1.example.org:7701")


class VmHostFile(Answer, kw_only=True, frozen=True):
    """What the controller holds of one host file of a VM. ``dirty_since``: the VM has run since the last sync.

    ``reason`` says why a file that should be there could not be saved.
    """

    type: HostFileType
    path: str | None
    size_bytes: int | None
    sha256: str | None
    synced_at: datetime | None
    dirty_since: datetime | None
    reason: str | None


class Vm(Answer, kw_only=True, frozen=True):
    """One VM. ``conflict`` names the hosts when more than one defines it; ``clone`` is null unless it is one."""

    uuid: UUID
    name: str
    host: str | None
    state: VmState
    firmware: Firmware
    tpm: Literal["2.0", "1.2"] | None
    managed_save: bool
    conflict: str | None
    current_snapshot: UUID | None
    disks: list[Disk]
    host_files: list[VmHostFile]
    clone: CloneOrigin | None = None

    @classmethod
    def example(cls) -> "Vm":
        """Return an example for documentation and tests."""
        return cls(
            uuid=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            name="win11",
            host="kvm1",
            state="shut-off",
            firmware="uefi",
            tpm="2.0",
            managed_save=False,
            conflict=None,
            current_snapshot=UUID("b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"),
            disks=[Disk.example()],
            host_files=[
                VmHostFile(
                    type="nvram",
                    path="/var/lib/libvirt/qemu/nvram/win11_VARS.fd",
                    size_bytes=540_672,
                    sha256="5d2d9d9e6c2f4d0f9b3f0d8e3f6b4d7f0c1a2b3c4d5e6f708192a3b4c5d6e7f8",
                    synced_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
                    dirty_since=None,
                    reason=None,
                )
            ],
        )


class ChainFile(Answer, kw_only=True, frozen=True):
    """One file of a volume's chain. ``snapshots`` are those whose frozen file it is; none for the top and templates."""

    path: str
    format: str
    virtual_size_bytes: int
    allocated_bytes: int
    snapshots: list[UUID] = []


class VmVolume(Answer, kw_only=True, frozen=True):
    """One disk of a VM as it stands: its chain from the top file to the root, ``depth`` files in all.

    ``allocated_bytes`` is what the chain takes on disk; files that several VMs or snapshots share count here too.
    """

    target: str
    path: str | None
    format: str | None
    virtual_size_bytes: int | None
    allocated_bytes: int
    depth: int
    chain: list[ChainFile] = []
    excluded_because: str | None = None
    problem: str | None = None

    @classmethod
    def example(cls) -> "VmVolume":
        """Return an example for documentation and tests."""
        disk = Disk.example()
        image = disk.chain[0]
        return cls(
            target=disk.target,
            path=disk.path,
            format=disk.format,
            virtual_size_bytes=disk.virtual_size_bytes,
            allocated_bytes=image.allocated_bytes,
            depth=1,
            chain=[
                ChainFile(
                    path=image.path,
                    format=image.format,
                    virtual_size_bytes=image.virtual_size_bytes,
                    allocated_bytes=image.allocated_bytes,
                )
            ],
        )
