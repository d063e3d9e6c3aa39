"""Ungroup: give up a snapshot's host files. Its volume snapshots stay usable, and no other owner loses anything."""

from typing import Any
from uuid import UUID

from agent.wire.base import Request
from agent.wire.plan import Plan, planned
from controller.operations.job import Job
from controller.store import groups


class Wanted(Request, kw_only=True, frozen=True):
    """The snapshot to ungroup."""

    snapshot: UUID


async def run(job: Job) -> dict[str, Any]:
    """Remove exactly this snapshot's backup files, in one transaction; no host is asked."""
    wanted = job.wanted(Wanted)
    await job.step("remove backup files")
    snapshot = await job.db.run(groups.ungroup, wanted.snapshot)
    return {"snapshot": str(snapshot.uuid), "volumes": [volume.target for volume in snapshot.volumes]}


async def plan(job: Job) -> Plan:
    """Plan it: no host is asked, and the records say all."""
    await job.db.run(groups.ungroup, job.wanted(Wanted).snapshot)
    return planned(job.row.operation.kind, [], [])
