"""Verify everything: one verification for each VM that has snapshots, each in its VM's queue, and one result."""

import asyncio
from typing import Any
from uuid import UUID

from agent.wire.base import Request
from agent.wire.finding import Finding
from agent.wire.operation import OPERATION_ENDED, Operation
from agent.wire.plan import Plan, PlannedStep, planned
from controller.db import write
from controller.errors import OperationCancelled, OperationNotCancellable
from controller.operations import verify
from controller.operations.job import Job
from controller.store import operations, survey


class Wanted(Request, kw_only=True, frozen=True):
    """As ``verify.Wanted``, for all VMs."""

    deep: bool = True


async def run(job: Job) -> dict[str, Any]:
    """Queue the verifications, wait for all, and put their findings together. Cancelled, it cancels those that wait."""
    wanted = verify.Wanted(deep=job.wanted(Wanted).deep)
    await job.step("queue one verification for each VM")
    children = await job.db.run(_queue, job.uuid, wanted)
    job.nudge()
    shown = -1
    while True:
        version = job.db.version
        ended = [one for one in await job.db.run(_all, children) if one.state in OPERATION_ENDED]
        if shown != len(ended) or job.cancelled:
            shown = len(ended)
            await _show(job, children, f"{shown} of {len(children)} VMs verified")
        if len(ended) == len(children):
            return _together(ended)
        await job.db.changed(version)
        await asyncio.sleep(job.patience.poll_s)


async def plan(job: Job) -> Plan:
    """Plan it: one verification for each VM."""
    found = await job.db.run(survey.with_snapshots)
    steps = [PlannedStep(action="verify", name=f"verify VM {vm}", facts={"vm": str(vm)}) for vm, _ in found]
    return planned(job.row.operation.kind, steps, [])


async def _show(job: Job, children: list[UUID], step: str) -> None:
    try:
        await job.step(step)
    except OperationCancelled:
        await job.db.run(_cancel, children)
        raise


def _queue(parent: UUID, wanted: verify.Wanted) -> list[UUID]:
    """Queue each once, however often this job is run."""
    with write():
        return [
            operations.enqueue("snapshot-verify", vm, host, wanted, key=f"verify {parent} {vm}").uuid
            for vm, host in survey.with_snapshots()
        ]


def _all(uuids: list[UUID]) -> list[Operation]:
    return [operations.get(uuid) for uuid in uuids]


def _cancel(uuids: list[UUID]) -> None:
    for uuid in uuids:
        try:
            operations.cancel(uuid)
        except OperationNotCancellable:
            continue


def _together(ended: list[Operation]) -> dict[str, Any]:
    findings: list[Any] = []
    for one in ended:
        if one.error is not None:
            what = f"the verification of a VM ended as {one.state}: {one.error.detail}"
            lost = Finding(code="not-checked", severity="error", what=what, repair="Verify this VM again", vm=one.vm)
            findings.append(lost)
        findings += one.result.get("findings", [])
    counts = {name: sum(one.result.get(name, 0) for one in ended) for name in ("snapshots", "volumes", "found")}
    return {**counts, "findings": findings[: verify.FINDINGS_LIMIT], "vms": len(ended)}
