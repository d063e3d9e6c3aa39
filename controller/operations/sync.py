"""Sync: bring the records of one VM in line with its host, and keep a copy of its host files.

Host files are read only while the VM is shut off: the NVRAM of a running VM is written in place, and the several
files of a TPM state are not replaced together, so a copy could be torn. A VM that runs keeps the copy that it has,
marked dirty, and the result says so.
"""

import logging
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from agent.client import AgentProblem
from agent.web.errors import Error
from agent.web.log import kv
from agent.wire.base import Request, utc_now
from agent.wire.host_file import FORMATS, HostFileType
from agent.wire.plan import Plan, PlannedStep, planned
from agent.wire.vm import HostVm
from controller.errors import CaptureCorrupt, HostFileTooLarge, HostUnreachable
from controller.operations import leftovers
from controller.operations.job import Job
from controller.operations.transaction import packed, reach
from controller.store import host_files, vms
from controller.store.contents import Held

log = logging.getLogger("coldframe.operations")


class Wanted(Request, kw_only=True, frozen=True):
    """Nothing to choose: the VM and its host are the operation's."""


@dataclass
class Synced:
    """What a look at the host brought. ``failed`` says why a type that the VM should have could not be read."""

    facts: HostVm
    held: dict[HostFileType, str] = field(default_factory=dict)
    changed: list[HostFileType] = field(default_factory=list)
    failed: dict[HostFileType, str] = field(default_factory=dict)
    skipped: str | None = None

    def result(self) -> dict[str, Any]:
        """Return what the operation's result says of it."""
        return {
            "host_files": dict(self.held),
            "changed": list(self.changed),
            "failed": [{"type": kind, "reason": reason} for kind, reason in self.failed.items()],
            "skipped": self.skipped,
        }


async def run(job: Job) -> dict[str, Any]:
    """Settle what an earlier operation left open, then read facts and host files."""
    await job.step("settle")
    await leftovers.settle(job)
    await job.step("read host files")
    return {"vm": str(job.vm), **(await look(job)).result()}


async def plan(job: Job) -> Plan:
    """Plan it: look, and take back what that would write."""
    synced = await look(job)
    steps = [PlannedStep(action="copy-host-file", name=f"copy {kind}") for kind in synced.held]
    notes = [f"the {kind} cannot be copied: {reason}" for kind, reason in synced.failed.items()]
    notes += [synced.skipped] if synced.skipped else []
    return planned(job.row.operation.kind, steps, [], notes=notes)


def expected_of(facts: HostVm) -> list[HostFileType]:
    """Return the host files that a VM has by its definition."""
    present: dict[HostFileType, bool] = {"nvram": facts.firmware == "uefi", "tpm": facts.tpm is not None}
    return [kind for kind, has in present.items() if has]


async def refresh(job: Job) -> HostVm:
    """Read the VM's facts from its host and record them. Raises HostUnreachable, AgentProblem."""
    facts = await reach(job, partial(job.client.vm, job.vm))
    await job.db.run(vms.record_one, job.host, facts, utc_now())
    return facts


async def look(job: Job) -> Synced:
    """Record facts and host files. One type that cannot be read never keeps another from being saved."""
    began_at = utc_now()
    synced = Synced(await refresh(job))
    if synced.facts.state != "shut-off":
        synced.skipped = f"the VM is {synced.facts.state}; its host files are copied when it stops"
        return synced
    kept = {one.type: one.sha256 for one in await job.db.run(host_files.of_vm, job.vm) if one.host == job.host}
    read: dict[HostFileType, Held] = {}
    for kind in expected_of(synced.facts):
        try:
            read[kind] = await _read(job, kind, kept.get(kind))
        except (AgentProblem, HostUnreachable, HostFileTooLarge, CaptureCorrupt) as err:
            synced.failed[kind] = reason_of(err)
    if read and (now := await refresh(job)).state != "shut-off":
        # It started while we read: what was read may be torn, and the copy from before is whole.
        synced.facts, synced.skipped = now, f"the VM became {now.state} while its host files were read"
        return synced
    await _record(job, synced, read, kept, began_at)
    return synced


async def _read(job: Job, type: HostFileType, known: str | None) -> Held:
    content = await reach(job, partial(job.client.read_host_file, job.vm, type, known))
    if content is None and known is not None:
        return known, FORMATS[type]
    if content is None:
        raise HostUnreachable(name=job.host, reason=f"it answered 304 for a {type} that is not held")
    return await packed(job, type, content.data, content.sha256), FORMATS[type]


async def _record(
    job: Job,
    synced: Synced,
    read: dict[HostFileType, Held],
    kept: dict[HostFileType, str | None],
    began_at: datetime,
) -> None:
    paths: dict[HostFileType, str | None] = {"nvram": synced.facts.nvram, "tpm": None}
    for kind, held in read.items():
        await job.db.run(host_files.record_sync, job.vm, job.host, kind, held, paths[kind], began_at)
        synced.held[kind] = held[0] if isinstance(held[0], str) else held[0].sha256
        if synced.held[kind] != kept.get(kind):
            synced.changed.append(kind)
    for kind, reason in synced.failed.items():
        await job.db.run(host_files.record_failure, job.vm, job.host, kind, reason)


def reason_of(err: Error) -> str:
    """Return an error's text as a reason to record."""
    return err.problem().detail


async def refreshed(job: Job) -> list[str]:
    """Refresh the VM's facts after a change that stands: what fails is told as a remark and fails nothing."""
    try:
        await refresh(job)
    except Error as err:
        log.warning(kv("refresh-failed", vm=job.vm, detail=reason_of(err)))
        return [f"the VM's records could not be refreshed: {reason_of(err)}"]
    return []


async def looked(job: Job) -> list[str]:
    """Look at the host after a change that stands, host files included: as ``refreshed``."""
    try:
        synced = await look(job)
    except Error as err:
        log.warning(kv("sync-failed", vm=job.vm, detail=reason_of(err)))
        return [f"the VM's records could not be refreshed: {reason_of(err)}"]
    return [f"the {kind} could not be copied: {reason}" for kind, reason in synced.failed.items()]
