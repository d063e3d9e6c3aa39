"""Repair: examine the fleet and mend what can be mended without risk. May be run again at any point."""

from typing import Any

from agent.wire.base import Request
from agent.wire.finding import Finding
from agent.wire.plan import Plan, PlannedStep, planned
from controller.doctor import repair as repairs
from controller.doctor.examine import examine
from controller.operations.job import Job


class Wanted(Request, kw_only=True, frozen=True):
    """Nothing to choose: what is safe is done."""


async def run(job: Job) -> dict[str, Any]:
    """Return what was repaired and what is left, from a second look."""
    job.wanted(Wanted)
    await job.step("examine")
    done: list[Finding] = []
    for one in await examine(job.db, job.hosts):
        if repairs.can(one):
            await job.step(f"repair {one.code}")
            done.append(await repairs.repair(job.db, job.hosts, one))
    await job.step("examine again")
    tried = {(one.code, one.what) for one in done if one.done is None}
    left = [one for one in await examine(job.db, job.hosts) if (one.code, one.what) not in tried]
    return {"items": [*done, *left]}


async def plan(job: Job) -> Plan:
    """Plan it: every repair that is safe, and how many findings would be left."""
    found = await examine(job.db, job.hosts)
    can = [one for one in found if repairs.can(one)]
    steps = [PlannedStep(action="repair", name=one.repair, path=one.path, facts={"code": one.code}) for one in can]
    left = len([one for one in found if one.is_wrong]) - len(can)
    return planned(job.row.operation.kind, steps, [], notes=[f"{left} finding(s) would be left"] if left else [])
