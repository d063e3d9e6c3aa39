"""What a plan is made of: steps, the plan, and the facts that it is made from. Nothing here touches anything.

A plan has four parts, run in this order:

``stage``    before commit; every step makes something new under a name that carries the transaction's id
``receive``  before commit; the host files that the controller uploads, each to its staged name; ``receive_images``
             likewise the images of an archive, and ``send`` those that it fetches for one
``switch``   after the journal's commit record; redone after a crash, undone when a step fails
``clean``    after the switch; removes what nobody needs any more

The steps of one inner list do not depend on each other and may run side by side.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import msgspec

from agent.transactions.archive_steps import PlaceImage, ReceiveImage, SendImage
from agent.transactions.step import Step
from agent.wire.host_file import HostFile, HostFileFormat, HostFileType, MissingHostFile
from agent.wire.vm import Disk, Image


class CreateOverlay(Step, kw_only=True, frozen=True, tag="create-overlay"):
    """Create an empty qcow2 overlay ``path`` on ``backing``, owned like ``like``."""

    target: str
    path: str
    backing: str
    backing_format: str
    size_bytes: int
    like: str

    @property
    def name(self) -> str:
        """Name the disk."""
        return f"create-overlay {self.target}"


class ConvertImage(Step, kw_only=True, frozen=True, tag="convert-image"):
    """Copy ``source`` with all that it stands on into ``path``, a file that stands on nothing, owned like ``source``.

    ``size_bytes`` is what will be written.
    """

    target: str
    path: str
    source: str
    size_bytes: int

    @property
    def name(self) -> str:
        """Name the disk."""
        return f"convert {self.target}"


class CaptureHostFile(Step, kw_only=True, frozen=True, tag="capture-host-file"):
    """Copy a present host file to ``staged`` for the controller to fetch."""

    type: HostFileType
    staged: str

    @property
    def name(self) -> str:
        """Name the type."""
        return f"capture {self.type}"


class ReceiveHostFile(Step, kw_only=True, frozen=True, tag="receive-host-file"):
    """Write an uploaded host file to ``staged``, beside ``path``, owned like what it will replace, or like ``like``."""

    type: HostFileType
    format: HostFileFormat
    path: str
    staged: str
    size_bytes: int
    sha256: str
    like: str = ""

    @property
    def name(self) -> str:
        """Name the type."""
        return f"receive {self.type}"


class PlaceHostFile(Step, kw_only=True, frozen=True, tag="place-host-file"):
    """Move ``staged`` (whose bytes hash to ``sha256``) to ``path``, where nothing is."""

    type: HostFileType
    path: str
    staged: str
    sha256: str

    @property
    def name(self) -> str:
        """Name the type."""
        return f"place {self.type}"


class SwapHostFile(Step, kw_only=True, frozen=True, tag="swap-host-file"):
    """Exchange ``staged`` (whose bytes hash to ``sha256``) with what is at ``path``, if anything is."""

    type: HostFileType
    path: str
    staged: str
    sha256: str

    @property
    def name(self) -> str:
        """Name the type."""
        return f"swap {self.type}"


class SetAsideHostFile(Step, kw_only=True, frozen=True, tag="set-aside-host-file"):
    """Move a host file that the VM did not have at the snapshot out of libvirt's sight, to ``staged``."""

    type: HostFileType
    path: str
    staged: str

    @property
    def name(self) -> str:
        """Name the type."""
        return f"set-aside {self.type}"


class SwitchDisks(Step, kw_only=True, frozen=True, tag="switch-disks"):
    """Point the domain's disks from their old to their new top files: the one switch for all disks at once."""

    vm: UUID
    sources: dict[str, tuple[str, str]]

    @property
    def name(self) -> str:
        """Name the disks."""
        return f"switch-disks {' '.join(sorted(self.sources))}"


class DefineDomain(Step, kw_only=True, frozen=True, tag="define-domain"):
    """Define a new domain; ``files`` are its disks, by which it is known as the one that was made."""

    vm: UUID
    title: str
    xml: str
    files: list[str]

    @property
    def name(self) -> str:
        """Name the domain."""
        return f"define {self.title}"


class UndefineDomain(Step, kw_only=True, frozen=True, tag="undefine-domain"):
    """Take the domain's definition away; every file stays. ``xml`` brings it back."""

    vm: UUID
    title: str
    xml: str

    @property
    def name(self) -> str:
        """Name the domain."""
        return f"undefine {self.title}"


class KeepDeparture(Step, kw_only=True, frozen=True, tag="keep-departure"):
    """Keep what was captured of a domain that left in ``staging``, with its definition, as ``kept``."""

    staging: str
    kept: str
    xml: str

    @property
    def name(self) -> str:
        """There is one in a plan."""
        return "keep departure"


class RebaseChild(Step, kw_only=True, frozen=True, tag="rebase-child"):
    """Copy into ``child`` what it sees of ``frozen``, and stand it on ``backing`` instead (None: on nothing).

    ``allocated_bytes`` are the frozen file's, the most that is copied; ``child_bytes`` are the child's before.
    """

    target: str
    frozen: str
    child: str
    backing: str | None
    backing_format: str | None
    allocated_bytes: int
    child_bytes: int = 0

    @property
    def name(self) -> str:
        """Name the disk."""
        return f"rebase {self.target}"


class SetAsideFrozen(Step, kw_only=True, frozen=True, tag="set-aside-frozen"):
    """Move a frozen file that nothing stands on any more to ``staged``, from where it can still come back."""

    target: str
    path: str
    staged: str

    @property
    def name(self) -> str:
        """Name the disk."""
        return f"set-aside frozen {self.target}"


class CommitChild(Step, kw_only=True, frozen=True, tag="commit-child"):
    """Write the data of ``child``, ``allocated_bytes`` of them, down into ``frozen``, which it covers all the while.

    ``fingerprint`` is the frozen file's before, which tells whether anything has been written to it.
    """

    target: str
    frozen: str
    child: str
    allocated_bytes: int
    fingerprint: str

    @property
    def name(self) -> str:
        """Name the disk."""
        return f"commit {self.target}"


class ReplaceChild(Step, kw_only=True, frozen=True, tag="replace-child"):
    """Give ``frozen``, which holds all of ``child`` now, the name, owner and label of ``child``."""

    target: str
    frozen: str
    child: str

    @property
    def name(self) -> str:
        """Name the disk."""
        return f"replace {self.target}"


class RemoveFile(Step, kw_only=True, frozen=True, tag="remove-file"):
    """Remove a file or a directory that nothing refers to any more."""

    what: str
    path: str

    @property
    def name(self) -> str:
        """Name what is removed."""
        return f"remove {self.what}"


AnyStep = (
    CreateOverlay
    | ConvertImage
    | CaptureHostFile
    | ReceiveHostFile
    | PlaceHostFile
    | ReceiveImage
    | PlaceImage
    | DefineDomain
    | UndefineDomain
    | KeepDeparture
    | SwapHostFile
    | SetAsideHostFile
    | SwitchDisks
    | RebaseChild
    | SetAsideFrozen
    | CommitChild
    | ReplaceChild
    | RemoveFile
)


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """The steps of one transaction; see the module's docstring for when each part runs."""

    stage: list[list[AnyStep]] = []
    receive: list[ReceiveHostFile] = []
    receive_images: list[ReceiveImage] = []
    send: list[SendImage] = []
    switch: list[list[AnyStep]] = []
    clean: list[list[AnyStep]] = []
    excluded: list[str] = []
    missing: list[MissingHostFile] = []
    kept: list[HostFileType] = []

    def names(self) -> list[str]:
        """List the names of all steps in the order in which they run."""
        return [step.name for step in self.steps()]

    def steps(self) -> list[AnyStep]:
        """List all steps in the order in which they run."""
        return [*self.before_commit(), *flat(self.switch), *flat(self.clean)]

    def before_commit(self) -> list[AnyStep]:
        """List the steps that make something before the commit."""
        return [*flat(self.stage), *self.receive, *self.receive_images]


def flat(groups: Iterable[Sequence[AnyStep]]) -> list[AnyStep]:
    """List the steps of several groups in order."""
    return [step for group in groups for step in group]


@dataclass(frozen=True)
class Room:
    """What is free on the file system of each directory, and which file system (``device``) that is."""

    free_bytes: dict[Path, int]
    device: dict[Path, int]


@dataclass(frozen=True)
class Facts:
    """What the planner is told about one domain and its host.

    ``disks`` hold their chains, or a ``problem``. ``host_file_paths`` says where each type that the domain is
    configured to have lives (whether it exists or not); ``present`` are sound, ``missing`` are not.
    ``frozen`` gives the chain of each frozen file that a revert names. ``staging`` is the directory for captured
    host files. ``in_use`` are present top files that something besides this domain needs. ``room`` is of each
    directory that files are made in; ``overlay_bytes`` maps a backing file to what a new overlay on it takes.
    """

    transaction: UUID
    name: str
    disks: list[Disk]
    staging: Path
    host_file_paths: dict[HostFileType, Path] = field(default_factory=dict)
    present: list[HostFile] = field(default_factory=list)
    missing: list[MissingHostFile] = field(default_factory=list)
    frozen: dict[str, list[Image]] = field(default_factory=dict)
    in_use: frozenset[str] = frozenset()
    room: Room = field(default_factory=lambda: Room({}, {}))
    overlay_bytes: dict[str, int] = field(default_factory=dict)
    reserve_bytes: int = 0


@dataclass(frozen=True)
class Doomed:
    """What the planner is told about one frozen file that is to be merged away.

    ``frozen`` is None when the file is gone already. ``children`` are the images that the controller named, by
    path (None: that file is gone). ``dependents`` are all files found standing on it: beside it on disk, and in the
    chains of the host's domains. ``written_by`` names the domains that have it as a disk of their own, ``taken`` the
    named children that another domain has as a disk. ``private``: nothing else would notice if its bytes changed and
    it took its child's name, since no other domain's chain holds it, both have one name only, and neither keeps
    bitmaps. ``staged`` is the hidden name beside it under which it waits to be removed.
    """

    target: str
    path: str
    staged: str
    frozen: Image | None
    children: dict[str, Image | None]
    dependents: list[str]
    written_by: list[str]
    taken: dict[str, list[str]] = field(default_factory=dict)
    private: bool = True
