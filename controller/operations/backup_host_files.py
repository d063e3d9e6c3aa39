"""Back up host files: freeze the present NVRAM and TPM of one VM for several outside owners.

All or nothing: an owner gets a whole new set, or keeps the one it has. A VM that is shut off is read at its host;
while it runs its files could be torn, so the copy from when it last stopped is taken, and the result says so.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from agent.wire.base import Request
from agent.wire.host_file import FORMATS, HOST_FILE_TYPES, HostFileType
from controller.errors import HostFilesMissing
from controller.operations import sync
from controller.operations.job import Job
from controller.store import backup_files, host_files


class Wanted(Request, kw_only=True, frozen=True):
    """The owners: resources outside Coldframe, by UUID."""

    owners: list[UUID]


async def run(job: Job) -> dict[str, Any]:
    """Read, then replace each owner's set in one transaction. Raises HostFilesMissing."""
    wanted = job.wanted(Wanted)
    await job.step("read host files")
    synced = await sync.look(job)
    expected = sync.expected_of(synced.facts)
    copies, as_of = dict(synced.held), None
    if synced.skipped is not None:
        copies, as_of = await _last_copies(job)
    _require(job, expected, copies, synced.failed)
    await job.step("replace the owners' copies")
    made = await job.db.run(
        backup_files.replace_many,
        "external",
        wanted.owners,
        {one: (copies[one], FORMATS[one]) for one in expected},
        absent=[one for one in HOST_FILE_TYPES if one not in expected],
    )
    return {
        "vm": str(job.vm),
        "backup_files": [str(file.uuid) for files in made.values() for file in files],
        "owners": {str(owner): [str(file.uuid) for file in files] for owner, files in made.items()},
        "source": "host" if synced.skipped is None else "last-sync",
        "as_of": as_of,
        "reason": synced.skipped,
    }


async def _last_copies(job: Job) -> tuple[dict[HostFileType, str], datetime | None]:
    """Return the newest copies that are held, and when the oldest of them was taken."""
    kept = await job.db.run(host_files.newest, job.vm)
    copies = {one.type: one.sha256 for one in kept.values() if one.sha256 is not None}
    times = [kept[one].synced_at for one in copies]
    return copies, min((at for at in times if at is not None), default=None)


def _require(
    job: Job, expected: list[HostFileType], copies: dict[HostFileType, str], failed: dict[HostFileType, str]
) -> None:
    """Raise HostFilesMissing where a type that the VM has is not at hand: a set with a hole is not a backup."""
    missing = [one for one in expected if one not in copies]
    if missing:
        reasons = [failed.get(one, "No copy of it was taken yet: shut the VM down first") for one in missing]
        raise HostFilesMissing(vm=job.vm, types=" and ".join(missing), reason=". ".join(dict.fromkeys(reasons)))
