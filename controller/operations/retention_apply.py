"""Apply a retention policy now: ask for the deletion of what goes, and wait for those that can be carried out.

The deletions are operations of their own, each in its VM's queue. One that waits for its VM to stop is not waited for.
"""

import asyncio
from typing import Any
from uuid import UUID

from agent.wire.base import Request
from agent.wire.operation import OPERATION_ENDED, Operation
from agent.wire.plan import Plan, PlannedStep, planned
from controller.db import write
from controller.errors import OperationCancelled, OperationNotCancellable, VmConflict, VmNotFound, VmNowhere
from controller.operations.job import Job
from controller.store import expiry, operations

_ASKED, _SKIPPED = "asked", "skipped"


class Wanted(Request, kw_only=True, frozen=True):
    """The policy, by name."""

    policy: str


async def run(job: Job) -> dict[str, Any]:
    """Apply it; the result lists the snapshots that went, those that wait, those that failed, and VMs left out."""
    policy = job.wanted(Wanted).policy
    await job.step("ask for deletions")
    asked, skipped = await job.db.run(_ask, job.uuid, policy)
    job.nudge()
    shown = -1
    while True:
        version = job.db.version
        found = await job.db.run(_all, asked)
        settled = [one for one in found.values() if one.state in OPERATION_ENDED or one.is_parked]
        if shown != len(settled) or job.cancelled:
            shown = len(settled)
            await _show(job, asked, f"{shown} of {len(found)} deletions")
        if len(settled) == len(found):
            return {"policy": policy, **_together(found), "skipped": skipped}
        await job.db.changed(version)
        await asyncio.sleep(job.patience.poll_s)


async def plan(job: Job) -> Plan:
    """Plan it: which snapshots would be asked to go. Each deletion can be planned by itself."""
    asked, skipped = await job.db.run(_ask, job.uuid, job.wanted(Wanted).policy)
    steps = [PlannedStep(action="delete", name=f"delete snapshot {uuid}", facts={"snapshot": uuid}) for uuid in asked]
    notes = [f"VM {one['vm']} would be left out: {one['reason']}" for one in skipped]
    return planned(job.row.operation.kind, steps, [], notes=notes)


def _ask(operation: UUID, policy: str) -> tuple[dict[str, UUID], list[dict[str, str]]]:
    """Ask once, however often the job is run: what was asked for is remembered with it."""
    with write():
        memo = operations.job(operation).memo
        if _ASKED not in memo:
            memo = {_ASKED: {}, _SKIPPED: []}
            for vm in expiry.concerned():
                try:
                    found = expiry.expire(vm, only=policy)
                except (VmNowhere, VmConflict, VmNotFound) as err:
                    memo[_SKIPPED].append({"vm": str(vm), "reason": err.problem().detail})
                else:
                    memo[_ASKED] |= {operations.job(one.uuid).request["snapshot"]: str(one.uuid) for one in found}
            operations.progress(operation, memo=memo)
        return {snapshot: UUID(uuid) for snapshot, uuid in memo[_ASKED].items()}, memo[_SKIPPED]


async def _show(job: Job, asked: dict[str, UUID], step: str) -> None:
    try:
        await job.step(step)
    except OperationCancelled:
        await job.db.run(_withdraw, asked)
        raise


def _all(asked: dict[str, UUID]) -> dict[str, Operation]:
    return {snapshot: operations.get(uuid) for snapshot, uuid in asked.items()}


def _withdraw(asked: dict[str, UUID]) -> None:
    for uuid in asked.values():
        try:
            operations.cancel(uuid)
        except OperationNotCancellable:
            continue


def _together(found: dict[str, Operation]) -> dict[str, Any]:
    """Sort the snapshots by what became of their deletions."""
    failed = [
        {"snapshot": snapshot, "operation": str(one.uuid), "reason": one.error.detail}
        for snapshot, one in found.items()
        if one.error is not None
    ]
    return {
        "deleted": [snapshot for snapshot, one in found.items() if one.state == "succeeded"],
        "waiting": [
            {"snapshot": snapshot, "operation": str(one.uuid)} for snapshot, one in found.items() if one.is_parked
        ],
        "failed": failed,
    }
