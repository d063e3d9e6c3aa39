"""The stored bytes of host files against their hashes and types. For the database's thread."""

from agent.web.errors import Error
from agent.wire.finding import Finding
from agent.wire.snapshot import Snapshot
from controller.store import backup_files
from controller.store.snapshots import Group


def check(group: Group) -> list[Finding]:
    """Read every stored host file of a snapshot and compare its hash; return what is wrong."""
    found = []
    for one in group.backups:
        try:
            backup_files.data(one.uuid)
        except Error as err:
            found.append(
                _finding(
                    group.snapshot,
                    "host-file-copy-damaged",
                    f"the {one.type} of snapshot {group.snapshot.name} cannot be given back: {err}",
                    "Restore the controller's database from a backup that holds it; its disks are not affected",
                )
            )
    snapshot = group.snapshot
    wanted = set(snapshot.host_files.expected) - set(snapshot.host_files.missing)
    if snapshot.host_files.state != "none" and (lost := wanted - {one.type for one in group.backups}):
        what = f"snapshot {snapshot.name} says that it holds {', '.join(sorted(lost))} and does not"
        found.append(
            _finding(snapshot, "host-file-copy-missing", what, "Restore the controller's database from a backup")
        )
    return found


def _finding(snapshot: Snapshot, code: str, what: str, repair: str) -> Finding:
    return Finding(code=code, severity="error", what=what, repair=repair, vm=snapshot.vm, snapshot=snapshot.uuid)
