"""Taking a VM's definition away from a host because another one on the same storage has it.

Its host files go with it, but for those that both hosts reach under one name.
"""

from functools import partial
from uuid import UUID

from agent.client import AgentProblem
from agent.wire.host_file import HostFileType
from agent.wire.transaction import DepartRequest
from controller.operations import transaction
from controller.operations.job import Job
from controller.store import backup_files


async def shared_with(job: Job, host: str) -> list[HostFileType]:
    """Return the host files that the other host must leave: those that this one may have on the same storage.

    Shared are those with the same path and bytes. Of a VM that runs here the bytes say nothing, as it writes them.
    """
    key, there = f"take away from {host}", job.at(host)
    known = job.recalled(key, list[HostFileType])
    if known is None:
        known = []
        try:
            theirs = await transaction.reach(there, partial(there.client.host_files, job.vm))
        except AgentProblem as err:
            if err.answer.code != "domain-not-found":
                raise
        else:
            ours = await transaction.reach(job, partial(job.client.host_files, job.vm))
            facts = await transaction.reach(job, partial(job.client.vm, job.vm))  # last: a start shows
            at_rest = facts.state == "shut-off"
            same = {(one.type, one.path, one.sha256 if at_rest else "") for one in ours.items}
            known = [one.type for one in theirs.items if (one.type, one.path, one.sha256 if at_rest else "") in same]
        await job.step(key, {key: known})
    return known


async def take_away(job: Job, host: str, keep: list[HostFileType], *, keep_copies: UUID | None = None) -> None:
    """Undefine it there. ``keep_copies``: the owner of backup files of what it has there."""
    there = job.at(host)
    request = DepartRequest(vm=job.vm, keep=keep, lease_s=job.patience.lease_s)
    try:
        view = await transaction.prepare(there, job.id_for(f"take away from {host}"), request)
    except AgentProblem as err:
        if err.answer.code != "domain-not-found":
            raise
        return  # gone already, by what an earlier run of this job committed
    async with transaction.leased(there, view.id):
        if keep_copies is not None and view.state == "prepared":
            held = await transaction.fetch(there, view)
            await job.db.run(backup_files.replace, "external", keep_copies, held)
        await transaction.commit(there, view)
    job.recorded(view.id)
