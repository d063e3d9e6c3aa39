"""Place: move a VM that is shut off to another host on the same storage, with its NVRAM and TPM state.

The host that has it holds it still while the other one writes the host files and defines it; only then is it taken
away there. So a crash leaves one definition or two, and never none; two are shown as a conflict, and placing the VM
again where it shall be takes the other away. A host that does not answer cannot be asked: then the copies that are
held are used, if they are as new as the VM or the caller says so.
"""

from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from agent.client import AgentProblem
from agent.web.errors import Error
from agent.wire.base import Request, utc_now
from agent.wire.host_file import FORMATS, HostFileType
from agent.wire.plan import Plan, planned
from agent.wire.transaction import DepartRequest, FirmwareFile, FrozenVolume, HostFileRef, PlaceRequest, Transaction
from agent.wire.vm import Disk, HostVm
from controller.db import write
from controller.errors import (
    HostFilesMissing,
    HostFilesStale,
    HostNotFound,
    HostUnreachable,
    OutcomeUnknown,
    TransactionAborted,
    VmConflict,
    VmMayRun,
)
from controller.operations import departure, elsewhere, leftovers, sync, transaction
from controller.operations.job import CONCLUDED, Job
from controller.store import clones, contents, host_files, operations, vms

_PLACE, _DEPART = "place", "depart"
#: What the VM's host files are on the new host, and when: before it could start there.
_BROUGHT, _BROUGHT_AT = "brought", "brought at"


class Wanted(Request, kw_only=True, frozen=True):
    """``host`` is the operation's own too. ``force``: old copies will do where the present host does not answer."""

    host: str
    force: bool = False


@dataclass
class Load:
    """What is brought to the new host. ``view`` is the departure that was prepared, None where nobody was asked."""

    name: str
    domain_xml: str
    disks: list[Disk]
    data: dict[HostFileType, bytes]
    blank: list[HostFileType] = field(default_factory=list)
    firmware: list[FirmwareFile] = field(default_factory=list)
    view: Transaction | None = None
    as_of: datetime | None = None
    compare: bool = True


async def run(job: Job) -> dict[str, Any]:
    """Move it; the result says from where, what its host files are, and what is left behind."""
    result = job.recalled(CONCLUDED, dict[str, Any])
    if result is None:
        result = await _place(job, job.wanted(Wanted))
    return {**result, "remarks": [*result["remarks"], *await sync.looked(job)]}


async def plan(job: Job) -> Plan:
    """Plan it: what the host would do that has the VM, and the one that is to have it."""
    wanted, kind = job.wanted(Wanted), job.row.operation.kind
    hosts = await _definers(job)
    others = [one for one in hosts if one != job.host]
    found: list[Plan] = []
    notes: list[str] = []
    try:
        for host in others:
            leaving = DepartRequest(vm=job.vm, keep=await departure.shared_with(job, host) if job.host in hosts else [])
            found.append(await transaction.plan(job.at(host), job.id_for(f"take away from {host}"), leaving))
    except (HostUnreachable, HostNotFound) as err:
        notes.append(f"its definition stays there: {sync.reason_of(err)}")
        found = []
    if job.host not in hosts:
        source = others[0] if others else None
        if found and source is not None:
            request = await _foreseen(job, source)
        else:
            load = await _from_copies(job, wanted, source, notes[0] if notes else "no host defines it")
            request = _request(job, load)
        found.insert(0, await transaction.plan(job, job.id_for(_PLACE), request))
    steps = [step for one in found for step in one.steps]
    refusals = [one for each in found for one in each.refusals]
    return planned(kind, steps, refusals, vm=job.vm, host=job.host, notes=notes)


async def _definers(job: Job) -> list[str]:
    """Return the hosts that define it. Where the wanted one does, the others are asked, for nothing else follows."""
    hosts = set(await job.db.run(vms.defined_on, job.vm))
    if job.host in hosts:
        hosts |= {host for host, vm in await elsewhere.shown(job.db, job.hosts, job.host) if vm.uuid == job.vm}
    return sorted(hosts)


async def _foreseen(job: Job, source: str) -> PlaceRequest:
    """Say what would be brought, as the host shows it now."""
    there = job.at(source)
    facts = await transaction.reach(there, partial(there.client.vm, job.vm))
    present = await transaction.reach(there, partial(there.client.host_files, job.vm))
    seed = await job.db.run(clones.seed_for, job.vm)
    refs = [
        HostFileRef(type=one.type, format=one.format, size_bytes=one.size_bytes, sha256=one.sha256)
        for one in present.items
    ]
    return PlaceRequest(
        vm=job.vm,
        name=facts.name,
        domain_xml=facts.domain_xml,
        volumes=_volumes(facts.disks, compare=True),
        host_files=refs,
        blank=[
            one.type for one in present.missing if job.wanted(Wanted).force or one.type in (*seed.held, *seed.blank)
        ],
    )


async def _place(job: Job, wanted: Wanted) -> dict[str, Any]:
    await job.step("check")
    job.hosts.client(job.host)
    hosts = job.recalled("from", list[str])
    if hosts is None:
        hosts = await _definers(job)
        if job.host not in hosts and len(hosts) > 1:
            raise VmConflict(vm=job.vm, hosts=", ".join(hosts))
    others = [one for one in hosts if one != job.host]
    if job.host in hosts:
        await job.step("hold", {"from": hosts})  # a later run must know of those that have let it go already
        return await _let_go(job, others)
    await leftovers.settle(job, given_up=wanted.force)
    source = others[0] if others else None
    await job.step("hold", {"from": hosts})
    async with AsyncExitStack() as held:
        named = job.id_for(_PLACE)
        load: Load | None = None
        if job.is_sealed(named):
            await _require_committed(job)
        else:
            load = await _load(job, wanted, source, held)
            await _bring(job, load, held)
        return await _conclude(job, source, load)


async def _load(job: Job, wanted: Wanted, source: str | None, held: AsyncExitStack) -> Load:
    if source is None:
        return await _from_copies(job, wanted, None, "no host defines it")
    there = job.at(source)
    request = DepartRequest(vm=job.vm, lease_s=job.patience.lease_s)
    began_at = utc_now()
    try:
        view = await transaction.prepare(there, job.id_for(_DEPART), request)
    except (HostUnreachable, HostNotFound) as err:
        return await _from_copies(job, wanted, source, sync.reason_of(err))
    await held.enter_async_context(transaction.leased(there, view.id))
    disks = await transaction.reach(there, partial(there.client.disks, job.vm))
    copies = await transaction.fetch(there, view)
    for kind, one in copies.items():
        await job.db.run(host_files.record_sync, job.vm, source, kind, one, None, began_at)
    seed = await job.db.run(clones.seed_for, job.vm)
    lost = {one.type: one.reason for one in view.missing if one.type not in {*seed.held, *seed.blank}}
    if lost and not wanted.force:
        reasons = "; ".join(lost.values())
        reason = f"{reasons}; restore them first, or let it go with older copies or none: --force"
        raise HostFilesMissing(vm=job.vm, types=" and ".join(lost), reason=reason)
    facts = await job.db.run(vms.definition, job.vm, source)
    older = [one for one in await job.db.run(host_files.best, job.vm, source) if one.type in lost]
    shas = {one.type: one.sha256 for one in older if one.sha256 is not None}
    shas |= {one.type: seed.held[one.type][0] for one in view.missing if one.type in seed.held}
    shas |= {kind: _sha256(one[0]) for kind, one in copies.items()}
    blank = [one.type for one in view.missing if one.type not in shas]
    data = await job.db.run(_bytes, shas)
    return Load(facts.name, view.domain_xml, disks, data, blank, view.firmware, view, began_at)


async def _from_copies(job: Job, wanted: Wanted, source: str | None, reason: str) -> Load:
    """Use what is held. Raises HostFilesMissing, HostFilesStale, VmMayRun."""
    facts = await job.db.run(vms.last_facts, job.vm)
    kept = {one.type: one for one in await job.db.run(host_files.best, job.vm, source)}
    seed = await job.db.run(clones.seed_for, job.vm)
    seeds = {kind: sha256 for kind, (sha256, _) in seed.held.items() if kind not in kept}
    blank = [kind for kind in sync.expected_of(facts) if kind in seed.blank and kind not in {*kept, *seeds}]
    expected = [kind for kind in sync.expected_of(facts) if kind not in {*seeds, *blank}]
    if none := [kind for kind in expected if kind not in kept or kept[kind].sha256 is None]:
        raise HostFilesMissing(vm=job.vm, types=" and ".join(none), reason=f"no copy is held, and {reason}")
    if not wanted.force:
        _require_fresh(facts, source, reason, {kind: kept[kind] for kind in expected})
    shas = {kind: str(kept[kind].sha256) for kind in expected} | seeds
    as_of = min((at for kind in expected if (at := kept[kind].synced_at) is not None), default=None)
    data = await job.db.run(_bytes, shas)
    compare = not wanted.force and source is not None
    return Load(facts.name, facts.domain_xml, facts.disks, data, blank, as_of=as_of, compare=compare)


def _require_fresh(
    facts: HostVm, source: str | None, reason: str, kept: Mapping[HostFileType, host_files.Kept]
) -> None:
    stale = [one for one in kept.values() if one.dirty_since is not None]
    if stale:
        oldest = min((one.synced_at for one in stale if one.synced_at is not None), default=utc_now())
        age = str(max(utc_now() - oldest, timedelta())).split(".", maxsplit=1)[0]
        types = " and ".join(sorted(one.type for one in stale))
        told = {"vm": facts.name, "types": types, "synced_at": oldest.isoformat(timespec="seconds"), "age": age}
        raise HostFilesStale(**told, host=stale[0].host, reason=reason)
    if source is not None and facts.state != "shut-off":
        raise VmMayRun(vm=facts.name, host=source, state=facts.state, reason=reason)


def _volumes(disks: list[Disk], *, compare: bool) -> list[FrozenVolume]:
    return [
        FrozenVolume(target=one.target, path=one.path, fingerprint=one.chain[0].fingerprint if compare else "")
        for one in disks
        if one.path is not None and one.chain
    ]


def _request(job: Job, load: Load) -> PlaceRequest:
    refs = {kind: contents.pack(data) for kind, data in load.data.items()}
    return PlaceRequest(
        vm=job.vm,
        name=load.name,
        domain_xml=load.domain_xml,
        volumes=_volumes(load.disks, compare=load.compare),
        firmware=load.firmware,
        host_files=[
            HostFileRef(type=kind, format=FORMATS[kind], size_bytes=one.size_bytes, sha256=one.sha256)
            for kind, one in sorted(refs.items())
        ],
        blank=load.blank,
        lease_s=job.patience.lease_s,
    )


async def _bring(job: Job, load: Load, held: AsyncExitStack) -> None:
    """Write the host files on the new host and define the VM there."""
    request = _request(job, load)
    await job.step("prepare")
    view = await transaction.prepare(job, job.id_for(_PLACE), request)
    await held.enter_async_context(transaction.leased(job, view.id))
    brought = {ref.type: ref.sha256 for ref in request.host_files}
    facts = {"kept_here": view.kept, "as_of": load.as_of, "asked": load.view is not None}
    await job.step("upload host files", {**facts, _BROUGHT: brought, _BROUGHT_AT: utc_now()})
    for ref in request.host_files:
        if ref.type not in view.kept:
            call = partial(job.client.upload, view.id, ref.type, load.data[ref.type], ref.sha256)
            await transaction.reach(job, call)
    await transaction.commit(job, view)


async def _require_committed(job: Job) -> None:
    """Learn how the commit that an earlier run sent ended. Raises OutcomeUnknown, TransactionAborted."""
    named = job.id_for(_PLACE)
    view = await transaction.outcome_of(job, named)
    if view is None or view.state != "committed":
        job.refuted(named)
        raise TransactionAborted(name=job.host, transaction=named)


async def _conclude(job: Job, source: str | None, load: Load | None) -> dict[str, Any]:
    """Record where the VM is, then take its definition away where it was."""
    result: dict[str, Any] = {
        "vm": str(job.vm),
        "host": job.host,
        "from": source,
        "host_files_as_of": job.memo.get("as_of"),
        "left_on": [],
        "remarks": [],
    }
    stays: list[str] = []
    if source is not None:
        result, stays = await _departed(job, source, result, load)
    await _record(job, [] if source is None else [source], result, stays)
    await leftovers.settle(job)  # what its lost host was not asked about
    return result


async def _departed(
    job: Job, source: str, result: dict[str, Any], load: Load | None
) -> tuple[dict[str, Any], list[str]]:
    """Take it away from ``source``; what fails is told and fails nothing: the VM is where it was to be.

    Also returns the hosts that have answered and still define it: to the records these are a conflict.
    """
    keep = job.recalled("kept_here", list[HostFileType]) or []
    try:
        if not job.recalled("asked", bool):
            raise HostUnreachable(name=source, reason="it was not asked")
        if load is not None and load.view is not None and not keep:
            await transaction.commit(job.at(source), load.view)
            job.recorded(load.view.id)
        else:
            # Also of a run that died: what it prepared there would be in the way.
            await transaction.abort(job.at(source), job.id_for(_DEPART))
            await departure.take_away(job, source, keep)
    except Error as err:
        remark = f"host {source} still defines it ({sync.reason_of(err)}); place it here again when that host answers"
        silent = isinstance(err, HostUnreachable | HostNotFound | OutcomeUnknown)
        return {**result, "left_on": [source], "remarks": [remark]}, [] if silent else [source]
    return result, []


async def _let_go(job: Job, others: list[str]) -> dict[str, Any]:
    """The VM is here already: take it away from the other hosts that define it, keeping their host files.

    The host is asked first: what is recorded of it may be old, and the last definition must not go. What several
    others have is kept apart. Raises HostUnreachable, AgentProblem.
    """
    remarks: list[str] = []
    for host in others:
        owner = job.uuid if host == others[0] else job.id_for(f"kept of {host}")
        await transaction.reach(job, partial(job.client.vm, job.vm))
        await departure.take_away(job, host, await departure.shared_with(job, host), keep_copies=owner)
        remarks += [f"the host files of {host} are kept for owner {owner}"] if owner != job.uuid else []
    result: dict[str, Any] = {
        "vm": str(job.vm),
        "host": job.host,
        "from": ", ".join(others) or None,
        "kept_as": str(job.uuid) if others else None,
        "left_on": [],
        "remarks": remarks,
    }
    if not others:
        await transaction.reach(job, partial(job.client.vm, job.vm))
    await _record(job, others, result)
    return result


async def _record(job: Job, others: list[str], result: dict[str, Any], stays: Collection[str] = ()) -> None:
    """Record that the VM is on the operation's host, as that shows it now, and on ``others`` only where it ``stays``.

    Where it does not answer the VM is taken to be as it was when it left.
    """
    at: datetime | None = utc_now()
    try:
        facts = await transaction.reach(job, partial(job.client.vm, job.vm))
    except (AgentProblem, HostUnreachable) as err:
        result["remarks"].append(f"the VM's records could not be refreshed: {sync.reason_of(err)}")
        facts, at = await job.db.run(vms.last_facts, job.vm), None
    brought = job.recalled(_BROUGHT, dict[HostFileType, str]) or {}
    brought_at = job.recalled(_BROUGHT_AT, datetime) or utc_now()
    taken_away = [one for one in others if one not in result["left_on"]]

    def record() -> None:
        with write():
            vms.placed(job.vm, job.host, facts, others, at, stays=stays)
            host_files.moved(job.vm, job.host, taken_away, brought, brought_at)
            operations.progress(job.uuid, memo={CONCLUDED: result})

    await job.db.run(record)
    job.recorded(job.id_for(_PLACE), result)


def _sha256(held: Any) -> str:
    return held if isinstance(held, str) else str(held.sha256)


def _bytes(shas: Mapping[HostFileType, str]) -> dict[HostFileType, bytes]:
    return {kind: contents.get(sha256) for kind, sha256 in shas.items()}
