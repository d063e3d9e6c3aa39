"""The agent's two-phase unit of work on one domain."""

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from agent.wire.base import Answer, Request
from agent.wire.clone import CloneMode, TpmChoice
from agent.wire.host_file import HostFile, HostFileFormat, HostFileType, MissingHostFile
from agent.wire.problem import Problem

HostFilesPolicy = Literal["required", "best-effort", "none"]
TransactionState = Literal["preparing", "prepared", "committing", "committed", "aborting", "aborted"]
TransactionKind = Literal["snapshot", "revert", "delete", "clone", "export", "import", "restore", "place", "depart"]
ENDED: frozenset[TransactionState] = frozenset({"committed", "aborted"})
DEFAULT_LEASE_S = 120.0


class SnapshotRequest(Request, kw_only=True, frozen=True, tag_field="kind", tag="snapshot"):
    """Freeze the disks of ``vm`` that are not in ``exclude``, and capture its host files.

    A disk that a snapshot cannot cover is refused unless its target is in ``exclude``.
    """

    vm: UUID
    snapshot: UUID
    host_files: HostFilesPolicy = "required"
    exclude: list[str] = []
    lease_s: float = DEFAULT_LEASE_S

    @classmethod
    def example(cls) -> "SnapshotRequest":
        """Return an example for documentation and tests."""
        return cls(
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            snapshot=UUID("b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"),
        )


class FrozenVolume(Request, kw_only=True, frozen=True):
    """One disk's frozen file as the controller recorded it; ``fingerprint`` as in wire.vm.Image, or empty."""

    target: str
    path: str
    fingerprint: str = ""


class HostFileRef(Request, kw_only=True, frozen=True):
    """One host file that the controller is going to upload to a transaction, by its hash."""

    type: HostFileType
    format: HostFileFormat
    size_bytes: int
    sha256: str


class RevertRequest(Request, kw_only=True, frozen=True, tag_field="kind", tag="revert"):
    """Put the domain back on frozen files, and put host files back.

    ``host_files`` are uploaded after prepare and before commit. A type in ``remove`` is taken away (kept in the
    undo point): the snapshot was complete without it. ``excluded`` are the targets that the snapshot left out.
    With ``alone``, disks that are not in ``volumes`` stay as they are and host files are left alone. With
    ``undo`` (the UUID of the undo point's snapshot) the present host files are captured first. Without it the old
    top files are removed where they are overlays of ours, except those in ``held``: files that snapshots hold.
    """

    vm: UUID
    snapshot: UUID
    volumes: list[FrozenVolume]
    host_files: list[HostFileRef] = []
    remove: list[HostFileType] = []
    excluded: list[str] = []
    alone: bool = False
    undo: UUID | None = None
    held: list[str] = []
    lease_s: float = DEFAULT_LEASE_S

    @classmethod
    def example(cls) -> "RevertRequest":
        """Return an example for documentation and tests."""
        nvram = HostFile.example()
        return cls(
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            snapshot=UUID("b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"),
            volumes=[FrozenVolume(target="vda", path="/var/lib/libvirt/images/win11.qcow2")],
            host_files=[HostFileRef(type="nvram", format="raw", size_bytes=nvram.size_bytes, sha256=nvram.sha256)],
            undo=UUID("4a4c47a5-6b52-4b93-a9b1-f3f0a2f31b0e"),
        )


class DoomedVolume(Request, kw_only=True, frozen=True):
    """One disk's frozen file to be merged away.

    ``children`` are all files known to stand directly on it: frozen files of other snapshots, and the domain's
    present top file where the domain stands on this snapshot. The agent checks them against the headers.
    """

    target: str
    path: str
    children: list[str] = []


class DeleteRequest(Request, kw_only=True, frozen=True, tag_field="kind", tag="delete"):
    """Merge frozen files of one snapshot away, or with a UUID of its own files whose snapshot is gone.

    Each target stands for one file. Repeating it after a failure finishes what is left.
    """

    vm: UUID
    snapshot: UUID
    volumes: list[DoomedVolume]
    lease_s: float = DEFAULT_LEASE_S

    @classmethod
    def example(cls) -> "DeleteRequest":
        """Return an example for documentation and tests."""
        return cls(
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            snapshot=UUID("b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"),
            volumes=[
                DoomedVolume(
                    target="vda",
                    path="/var/lib/libvirt/images/win11.qcow2",
                    children=["/var/lib/libvirt/images/win11.cf-0f7c2c54.vda.qcow2"],
                )
            ],
        )


class RestoreRequest(Request, kw_only=True, frozen=True, tag_field="kind", tag="restore"):
    """Put host files of a domain that is shut off in place, all of them or none; its disks are left alone.

    ``host_files`` are uploaded after prepare and before commit. Present ones that they replace are captured, for the
    controller to fetch.
    """

    vm: UUID
    host_files: list[HostFileRef]
    lease_s: float = DEFAULT_LEASE_S

    @classmethod
    def example(cls) -> "RestoreRequest":
        """Return an example for documentation and tests."""
        return cls(vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"), host_files=RevertRequest.example().host_files)


class CloneRequest(Request, kw_only=True, frozen=True, tag_field="kind", tag="clone"):
    """Make one new domain, ``vm`` called ``name``, of a snapshot of the domain ``source``.

    ``domain_xml`` and ``volumes`` are the snapshot's. ``host_files`` are uploaded after prepare and before commit:
    the NVRAM where the domain has one, the TPM where ``tpm`` is ``copy``. The source itself is not touched and may
    run. A long copy is answered with ``preparing``: poll it.
    """

    vm: UUID
    name: str
    source: UUID
    snapshot: UUID
    mode: CloneMode
    tpm: TpmChoice
    domain_xml: str
    volumes: list[FrozenVolume]
    host_files: list[HostFileRef] = []
    lease_s: float = DEFAULT_LEASE_S

    @classmethod
    def example(cls) -> "CloneRequest":
        """Return an example for documentation and tests."""
        return cls(
            vm=UUID("a1d5a6cf-2f2c-4a53-9e4f-6d4b0f0e7c21"),
            name="win11-a",
            source=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            snapshot=UUID("b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"),
            mode="linked",
            tpm="reset",
            domain_xml="<domain type='kvm'><name>win11</name></domain>",
            volumes=[FrozenVolume(target="vda", path="/var/lib/libvirt/images/win11.qcow2")],
            host_files=RevertRequest.example().host_files,
        )


class FirmwareFile(Answer, kw_only=True, frozen=True):
    """A loader or NVRAM template, so that a later restore can tell whether the firmware is still the same."""

    role: Literal["loader", "template"]
    path: str
    size_bytes: int
    sha256: str


class PlaceRequest(Request, kw_only=True, frozen=True, tag_field="kind", tag="place"):
    """Define a domain of another host here, with its host files in place before its first start.

    Its images must be here, under the same paths; ``volumes`` say how each top file looked on the other host (an empty
    fingerprint: do not compare). ``firmware`` are loader and template that it ran with. ``host_files`` are uploaded
    after prepare and before commit; a type that the domain has and that is neither there nor in ``blank`` is refused.
    """

    vm: UUID
    name: str
    domain_xml: str
    volumes: list[FrozenVolume] = []
    firmware: list[FirmwareFile] = []
    host_files: list[HostFileRef] = []
    blank: list[HostFileType] = []
    lease_s: float = DEFAULT_LEASE_S

    @classmethod
    def example(cls) -> "PlaceRequest":
        """Return an example for documentation and tests."""
        clone = CloneRequest.example()
        return cls(vm=clone.source, name="win11", domain_xml=clone.domain_xml, host_files=clone.host_files)


class DepartRequest(Request, kw_only=True, frozen=True, tag_field="kind", tag="depart"):
    """Hold a domain that is shut off, give its definition and host files, and at commit take them away from here.

    The images stay, and host files in ``keep`` (those that the new host uses in place). What is taken away is kept in
    ``departed/`` of the agent's state directory. The answer's ``domain_xml`` holds console passwords.
    """

    vm: UUID
    keep: list[HostFileType] = []
    lease_s: float = DEFAULT_LEASE_S

    @classmethod
    def example(cls) -> "DepartRequest":
        """Return an example for documentation and tests."""
        return cls(vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"))


class ExportRequest(Request, kw_only=True, frozen=True, tag_field="kind", tag="export"):
    """Hold the frozen files of a snapshot still, so that they can be fetched (wire.archive).

    ``flat``: each with all that it stands on as one new file, else they and all they stand on as they are. The domain
    ``vm``, called ``name``, is not touched: it may run, or be gone. It ends with abort, which removes what was made.
    """

    vm: UUID
    name: str
    snapshot: UUID
    volumes: list[FrozenVolume]
    flat: bool = True
    lease_s: float = DEFAULT_LEASE_S

    @classmethod
    def example(cls) -> "ExportRequest":
        """Return an example for documentation and tests."""
        clone = CloneRequest.example()
        return cls(vm=clone.source, name="win11", snapshot=clone.snapshot, volumes=clone.volumes)


class ComingImage(Request, kw_only=True, frozen=True):
    """One file of a disk that will be sent: at ``position`` 0 the frozen file, at 1 what that stands on, and so on."""

    target: str
    position: int
    size_bytes: int
    virtual_size_bytes: int


class ImportRequest(Request, kw_only=True, frozen=True, tag_field="kind", tag="import"):
    """Make the domain ``vm`` called ``name`` of what an archive holds, in a state where it stands on a snapshot.

    ``images`` and ``host_files`` are sent after prepare and before commit; the images go into ``directory``, or into
    the first of the allowed ones. ``domain_xml`` is the archive's. With ``renew`` the domain gets an identity of its
    own (``vm`` and ``name`` are new), else it has that UUID and name already.
    """

    vm: UUID
    name: str
    snapshot: UUID
    domain_xml: str
    images: list[ComingImage]
    host_files: list[HostFileRef] = []
    renew: bool = False
    directory: str | None = None
    lease_s: float = DEFAULT_LEASE_S

    @classmethod
    def example(cls) -> "ImportRequest":
        """Return an example for documentation and tests."""
        clone = CloneRequest.example()
        return cls(
            vm=clone.source,
            name="win11",
            snapshot=clone.snapshot,
            domain_xml=clone.domain_xml,
            images=[
                ComingImage(target="vda", position=0, size_bytes=21_474_836_480, virtual_size_bytes=68_719_476_736)
            ],
            host_files=clone.host_files,
        )


#: Work on a domain that is there; one that is made or placed is not there yet, and an export does not touch it.
DomainRequest = SnapshotRequest | RevertRequest | DeleteRequest | RestoreRequest | DepartRequest
NewDomainRequest = CloneRequest | ImportRequest | PlaceRequest
TransactionRequest = DomainRequest | NewDomainRequest | ExportRequest


class FrozenFile(Answer, kw_only=True, frozen=True):
    """One disk's frozen file as a transaction leaves it.

    ``path`` is the file that is frozen, ``backing`` what it stands on, ``overlay`` the domain's new top file.
    ``fingerprint`` is that of wire.vm.Image.
    """

    target: str
    path: str
    format: str
    backing: str | None
    virtual_size_bytes: int
    allocated_bytes: int
    fingerprint: str
    overlay: str

    @classmethod
    def example(cls) -> "FrozenFile":
        """Return an example for documentation and tests."""
        return cls(
            target="vda",
            path="/var/lib/libvirt/images/win11.qcow2",
            format="qcow2",
            backing=None,
            virtual_size_bytes=68_719_476_736,
            allocated_bytes=21_474_836_480,
            fingerprint="21478375424:1793611800000000000",
            overlay="/var/lib/libvirt/images/win11.cf-0f7c2c54.vda.qcow2",
        )


class VolumeOutcome(Answer, kw_only=True, frozen=True):
    """How the merge of one disk ended. ``moved_bytes`` is what was copied between image files.

    ``fingerprints`` gives the new fingerprint of each file that was rewritten, by path; ``new_backing`` is what
    the children stand on now. ``altered`` is the new fingerprint of a frozen file that is still there and into which
    its child's data were begun to be written: it no longer holds what it held.
    """

    target: str
    done: bool
    moved_bytes: int = 0
    error: Problem | None = None
    fingerprints: dict[str, str] = {}
    new_backing: str | None = None
    altered: str | None = None


class Transaction(Answer, kw_only=True, frozen=True):
    """A transaction as the agent shows it.

    For a snapshot ``volumes`` are the frozen files and ``host_files`` what was captured; for a revert both
    describe the undo point (the present state), if one was asked for; for a restore ``host_files`` are those that
    are replaced. For a clone ``volumes`` are the frozen files that it is made of, each with the clone's own file as
    ``overlay``; ``excluded`` are disks that it does not have. For an import they are the files that it puts in place,
    with a fingerprint once they were received. For a place ``kept`` are host files that were here already; for a depart
    ``host_files`` are all that the domain has. ``steps`` are the names of the plan's steps.
    ``outcomes`` is filled by delete.
    """

    id: UUID
    kind: TransactionKind
    vm: UUID
    state: TransactionState
    started_at: datetime
    snapshot: UUID | None = None
    lease_expires_at: datetime | None = None
    ended_at: datetime | None = None
    error: Problem | None = None
    volumes: list[FrozenFile] = []
    excluded: list[str] = []
    host_files: list[HostFile] = []
    expected: list[HostFileType] = []
    missing: list[MissingHostFile] = []
    kept: list[HostFileType] = []
    domain_xml: str = ""
    firmware: list[FirmwareFile] = []
    tpm_secret: UUID | None = None
    outcomes: list[VolumeOutcome] = []
    done_bytes: int = 0
    total_bytes: int = 0
    steps: list[str] = []

    @classmethod
    def example(cls) -> "Transaction":
        """Return an example for documentation and tests."""
        return cls(
            id=UUID("0f7c2c54-6a63-4a0e-9d0a-6ad2a0f3c0de"),
            kind="snapshot",
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            snapshot=UUID("b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"),
            state="prepared",
            started_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
            lease_expires_at=datetime(2026, 11, 2, 9, 32, tzinfo=UTC),
            volumes=[FrozenFile.example()],
            host_files=[HostFile.example()],
            expected=["nvram", "tpm"],
            steps=["create-overlay vda", "capture nvram", "capture tpm"],
        )
