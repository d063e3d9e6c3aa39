"""Which snapshot is meant."""

import re
from uuid import UUID

from agent.wire.snapshot import Snapshot
from controller.cli.client import Client, path
from controller.cli.errors import SnapshotUnclear, SnapshotUnknown

_PREFIX = re.compile(r"[0-9a-f][0-9a-f-]{3,35}")


def snapshot_uuid(client: Client, text: str) -> UUID:
    """Return the snapshot that ``text`` names: a UUID, the beginning of one (4 characters or more), or VM/NAME.

    A libvirt domain's name has no slash, so the first one ends the VM's part. Raises SnapshotUnknown and
    SnapshotUnclear; Answered where the VM is not known.
    """
    try:
        return UUID(text)
    except ValueError:
        vm, slash, name = text.partition("/")
    if slash:
        found = [one.uuid for one in client.items(path("vms", vm, "snapshots"), Snapshot) if one.name == name]
    elif _PREFIX.fullmatch(text.lower()):
        everything = client.items(path("snapshots"), Snapshot)
        found = [one.uuid for one in everything if str(one.uuid).startswith(text.lower())]
    else:
        found = []
    if not found:
        raise SnapshotUnknown(text=text)
    if len(found) > 1:
        raise SnapshotUnclear(text=text, uuids=" ".join(sorted(map(str, found))))
    return found[0]
