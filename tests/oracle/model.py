"""What must be there: each VM as it was last left, and each of its snapshots as it was when it was made."""

from dataclasses import dataclass, field
from uuid import UUID

Hashes = dict[str, str]


@dataclass
class Kept:
    """A snapshot. ``host_files`` is empty where it holds none; ``altered`` are disks that a failed commit wrote to."""

    uuid: UUID
    disks: Hashes
    host_files: Hashes
    parent: UUID | None
    automatic: bool = False
    protected: bool = False
    name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    altered: set[str] = field(default_factory=set)


@dataclass
class Machine:
    """A VM: what it would see if it started now, its snapshots, and deletions that wait for it to stop.

    ``base_kept``: merging a hidden base failed, and the next deletion or revert will try again.
    """

    uuid: UUID
    name: str
    disks: Hashes
    host_files: Hashes
    snapshots: dict[UUID, Kept] = field(default_factory=dict)
    current: UUID | None = None
    running: bool = False
    base_kept: bool = False
    parked: dict[str, UUID] = field(default_factory=dict)

    def add(self, uuid: UUID, targets: set[str], *, host_files: bool, automatic: bool = False) -> Kept:
        """Keep these disks, and the host files, as they are now; the snapshot stands on the current one."""
        kept = Kept(
            uuid=uuid,
            disks={target: self.disks[target] for target in targets},
            host_files=dict(self.host_files) if host_files else {},
            parent=self.current,
            automatic=automatic,
        )
        self.snapshots[uuid] = kept
        return kept

    def go_back(self, kept: Kept, volumes: set[str] | None) -> None:
        """See again what was kept: everything, or these disks alone."""
        self.disks |= {target: one for target, one in kept.disks.items() if volumes is None or target in volumes}
        if volumes is None:
            self.host_files |= kept.host_files
            self.current = kept.uuid

    def remove(self, uuid: UUID) -> None:
        """Forget a snapshot: its children, and the VM, then stand on its parent."""
        gone = self.snapshots.pop(uuid)
        for other in self.snapshots.values():
            if other.parent == uuid:
                other.parent = gone.parent
        if self.current == uuid:
            self.current = gone.parent
