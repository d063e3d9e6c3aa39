"""Forget a VM: remove its records, host files, snapshots' backup files and contents. Its disks are left as they are."""

from typing import Any

from agent.wire.base import Request
from controller.errors import VmNotFound
from controller.operations.job import Job
from controller.store import vms


class Wanted(Request, kw_only=True, frozen=True):
    """Nothing to choose: the VM is the operation's."""


async def run(job: Job) -> dict[str, Any]:
    """Remove the records in one transaction; no host is asked. Raises VmNotFound, VmBusy."""
    begun = job.recalled("begun", bool)
    await job.step("remove records", {"begun": True})
    try:
        await job.db.run(vms.forget, job.vm, but=job.uuid)
    except VmNotFound:
        if not begun:
            raise
        # An earlier run of this job removed them, and died before it could say so.
    return {"vm": str(job.vm)}
