"""The whole examination: records, hosts, and one against the other."""

from dataclasses import replace
from importlib.metadata import version
from uuid import UUID

from agent.wire.base import utc_now
from agent.wire.finding import Finding
from controller.db import Database
from controller.doctor import chains, history, look, records
from controller.doctor import hosts as host_checks
from controller.doctor.look import Look, Together
from controller.hosts import Hosts
from controller.store import survey
from controller.store.survey import Records


async def examine(db: Database, hosts: Hosts) -> list[Finding]:
    """Return everything that is wrong or good to know across the fleet. Changes nothing."""
    before = await db.run(survey.take)
    looks = await look.all_hosts(hosts, before)
    seen = _settled(before, await db.run(survey.take))
    found = await db.run(records.judge, seen)
    together = _together(seen, looks)
    now, own = utc_now(), version("coldframe")
    for one in looks:
        found += host_checks.judge(one, seen, own, now, together)
        found += chains.judge(one, seen)
        found += history.judge(one, seen)
    return list({(one.code, one.host, one.what): one for one in found}.values())


def _settled(before: Records, after: Records) -> Records:
    """Return the later records, with every VM as busy that was at work, or changed, while the hosts were looked at."""

    def of_vms(records: Records) -> dict[UUID, list[object]]:
        found: dict[UUID, list[object]] = {}
        for snapshot in records.snapshots.values():
            found.setdefault(snapshot.vm, []).append(snapshot)
        for volume in records.volumes:
            found.setdefault(volume.vm, []).append(volume)
        return found

    was, now = of_vms(before), of_vms(after)
    changed = {vm for vm in was.keys() | now.keys() if was.get(vm) != now.get(vm)}
    return replace(after, busy=before.busy | after.busy | changed)


def _together(records: Records, looks: list[Look]) -> Together:
    at_work = {one.id for each in looks for one in each.transactions if one.vm in records.busy}
    at_work |= {uuid for each in looks for uuid in each.open_transactions()}
    complete = all(each.facts is not None and not each.unanswered for each in looks)
    return Together(named=_named(records, looks), at_work=at_work, complete=complete)


def _named(records: Records, looks: list[Look]) -> set[str]:
    """Return every file that a record or any domain names, on whichever host: directories may be shared."""
    named = {volume.path for volume in records.volumes if not volume.merged}
    disks = [disk for vm in records.vms.values() for disk in vm.disks]
    disks += [disk for one in looks for vm in one.vms for disk in vm.disks]
    for disk in disks:
        named |= {image.path for image in disk.chain} | ({disk.path} if disk.path else set())
    for one in looks:
        named |= {item.path for item in (one.leftovers.items if one.leftovers else []) if item.domains}
    return named
