"""Back up host files: freeze the present NVRAM and TPM of one VM for several outside owners.

All or nothing: an owner gets a whole new set, or keeps the one it has. A VM that is shut off is read at its host;
while it runs its files could be torn, so the copy from when it last stopped is taken, and the result says so.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from agent.wire.base import Request
from agent.wire.host_file import FORMATS, HOST_FILE_TYPES, HostFileType
from agent.wire.plan import Plan, planned
from controller.db import write
from controller.errors import HostFilesMissing
from controller.operations import sync
from controller.operations.job import CONCLUDED, Job
from controller.store import backup_files, host_files, operations
from controller.store.contents import Held


class Wanted(Request, kw_only=True, frozen=True):
    """The owners: resources outside Coldframe, by UUID."""

    owners: list[UUID]


async def run(job: Job) -> dict[str, Any]:
    """Read, then replace each owner's set in one transaction. Raises HostFilesMissing."""
    result = job.recalled(CONCLUDED, dict[str, Any])
    return await _back_up(job, job.wanted(Wanted).owners) if result is None else result


async def plan(job: Job) -> Plan:
    """Plan it: look, and take back what that would write."""
    held, facts = await _find(job)
    await job.db.run(_replace, job.uuid, job.wanted(Wanted).owners, held, facts)
    notes = [f"the copies from {facts['as_of']} would be taken: {facts['reason']}"] if facts["reason"] else []
    return planned(job.row.operation.kind, [], [], notes=notes)


async def _back_up(job: Job, owners: list[UUID]) -> dict[str, Any]:
    await job.step("read host files")
    held, facts = await _find(job)
    await job.step("replace the owners' copies")
    return await job.db.run(_replace, job.uuid, owners, held, facts)


async def _find(job: Job) -> tuple[dict[HostFileType, Held], dict[str, Any]]:
    """Return one copy of each type that the VM has, and what the result says of them."""
    synced = await sync.look(job)
    expected = sync.expected_of(synced.facts)
    copies, as_of = dict(synced.held), None
    if synced.skipped is not None:
        copies, as_of = await _last_copies(job)
    _require(job, expected, copies, synced.failed)
    facts = {
        "vm": str(job.vm),
        "source": "host" if synced.skipped is None else "last-sync",
        "as_of": as_of,
        "reason": synced.skipped,
    }
    return {one: (copies[one], FORMATS[one]) for one in expected}, facts


def _replace(
    operation: UUID, owners: list[UUID], held: dict[HostFileType, Held], facts: dict[str, Any]
) -> dict[str, Any]:
    """Replace the sets of all owners and remember the result: whoever fails after this commit has not failed."""
    with write():
        absent = [one for one in HOST_FILE_TYPES if one not in held]
        made = backup_files.replace_many("external", owners, held, absent=absent)
        by_owner = {str(owner): [str(file.uuid) for file in files] for owner, files in made.items()}
        result = {**facts, "backup_files": [uuid for uuids in by_owner.values() for uuid in uuids], "owners": by_owner}
        operations.progress(operation, memo={CONCLUDED: msgspec.to_builtins(result)})
        return result


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
        reasons = [failed.get(one, "no copy of it was taken yet; shut the VM down first") for one in missing]
        raise HostFilesMissing(vm=job.vm, types=" and ".join(missing), reason="; ".join(dict.fromkeys(reasons)))
