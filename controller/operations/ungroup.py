"""Ungroup: give up a snapshot's host files. Its volume snapshots stay usable, and no other owner loses anything."""

from typing import Any
from uuid import UUID

from agent.wire.base import Request
from agent.wire.plan import Plan, planned
from controller.db import write
from controller.operations.job import CONCLUDED, Job
from controller.store import groups, operations


class Wanted(Request, kw_only=True, frozen=True):
    """The snapshot to ungroup."""

    snapshot: UUID


async def run(job: Job) -> dict[str, Any]:
    """Remove exactly this snapshot's backup files, in one transaction; no host is asked."""
    wanted = job.wanted(Wanted)
    result = job.recalled(CONCLUDED, dict[str, Any])
    if result is None:
        await job.step("remove backup files")
        result = await job.db.run(_ungroup, job.uuid, wanted.snapshot)
    return result


async def plan(job: Job) -> Plan:
    """Plan it: no host is asked, and the records say all."""
    await job.db.run(_ungroup, job.uuid, job.wanted(Wanted).snapshot)
    return planned(job.row.operation.kind, [], [])


def _ungroup(operation: UUID, snapshot: UUID) -> dict[str, Any]:
    """Ungroup and remember that it is done: whoever fails after this commit has not failed to ungroup."""
    with write():
        left = groups.ungroup(snapshot)
        result = {"snapshot": str(left.uuid), "volumes": [volume.target for volume in left.volumes]}
        operations.progress(operation, memo={CONCLUDED: result})
        return result
