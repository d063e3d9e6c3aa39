"""What the records themselves show to be wrong. For the database's thread."""

from collections.abc import Iterator
from typing import Any

from agent.wire.base import utc_now
from agent.wire.finding import Finding
from agent.wire.fleet import Vm
from controller.db import read
from controller.retention import is_ahead
from controller.store import expiry, invariants
from controller.store.survey import Records

_REASONS = {"creating": "taken", "reverting": "reverted to", "deleting": "deleted"}


def judge(records: Records) -> list[Finding]:
    """Return what contradicts itself, is held up, or waits to be seen to."""
    reachable = {host.name for host in records.hosts if host.reachable}
    with read():
        found = [*_orphans(), *_idle_bases(), *_failing()]
    found += [*_snapshots(records, reachable), *_dated_ahead(records)]
    for vm in sorted(records.vms.values(), key=lambda one: (one.name, one.uuid)):
        found += _vm(records, vm, reachable)
    return found


def _orphans() -> Iterator[Finding]:
    for sentence in invariants.orphans():
        # What lost its owner can go; a contradiction is for a person to judge.
        ownerless = sentence.endswith("belongs to nothing") or (
            sentence.startswith("backup file") and " has lost its " in sentence
        )
        repair = "Remove it" if ownerless else "Restore a sound copy of the database, and report this as a defect"
        yield Finding(
            code="database-orphan",
            severity="warning" if ownerless else "error",
            what=f"in the database {sentence}",
            repair=repair,
            safe=ownerless,
        )


def _idle_bases() -> Iterator[Finding]:
    for row in invariants.idle_bases():
        what = f"{row.path} was kept for what stood on it, and nothing does any more"
        repair = "Nothing needs to be done: the next deletion or revert of its VM removes it"
        yield Finding(
            code="idle-base", severity="info", what=what, repair=repair, vm=row.vm_id, host=row.host, path=row.path
        )


def _dated_ahead(records: Records) -> Iterator[Finding]:
    now = utc_now()
    for one in sorted(records.snapshots.values(), key=lambda one: (one.created_at, one.uuid)):
        if is_ahead(one, now):
            told = f"snapshot {one.name} of VM {one.vm_name} is dated {one.created_at:%Y-%m-%d %H:%M} UTC"
            yield Finding(
                code="snapshot-dated-ahead",
                severity="warning",
                what=f"{told}, which is still to come: retention lets no snapshot of this VM go until then",
                repair="Correct the clock of the controller's machine; where it is right by now, delete this snapshot",
                vm=one.vm,
                snapshot=one.uuid,
            )


def _failing() -> Iterator[Finding]:
    for one in expiry.failing():
        told = f"snapshot {one.snapshot.name} of VM {one.snapshot.vm_name}"
        yield Finding(
            code="retention-failing",
            severity="warning",
            what=f"retention could not delete {told}, {one.tries} time(s): {one.reason}",
            repair=f"Mend what the reason names; it is tried again after {one.next_at:%Y-%m-%d %H:%M} UTC",
            vm=one.snapshot.vm,
            snapshot=one.snapshot.uuid,
        )


def _snapshots(records: Records, reachable: set[str]) -> Iterator[Finding]:
    for one in records.snapshots.values():
        about: dict[str, Any] = {"vm": one.vm, "snapshot": one.uuid, "host": records.vms[one.vm].host}
        told = f"snapshot {one.name} of VM {one.vm_name}"
        if one.state == "failed":
            what = f"{told} never became whole: {one.host_files.reason or 'no reason is recorded'}"
            repair = f"Delete it: coldframe snapshot delete {one.uuid}"
            yield Finding(code="snapshot-failed", severity="warning", what=what, repair=repair, **about)
        elif one.state in _REASONS and one.vm not in records.busy:
            what = f"{told} was being {_REASONS[one.state]}, and no operation works on it any more"
            repair = f"Let its host say how that ended: coldframe vm sync {one.vm}"
            safe = about["host"] in reachable and not records.vms[one.vm].conflict
            yield Finding(code="snapshot-held-up", severity="error", what=what, repair=repair, safe=safe, **about)


def _vm(records: Records, vm: Vm, reachable: set[str]) -> Iterator[Finding]:
    about: dict[str, Any] = {"vm": vm.uuid, "host": vm.host}
    if vm.conflict:
        what = f"VM {vm.name} is defined on several hosts: {vm.conflict}"
        repair = f"Undefine it on all but one: virsh undefine {vm.name} --keep-nvram --keep-tpm"
        yield Finding(code="vm-conflict", severity="error", what=what, repair=repair, **about)
        return
    if vm.host is None:
        what = f"no enrolled host defines VM {vm.name}; what is recorded of it is kept"
        repair = (
            f"Define it again, or put it back: coldframe vm place {vm.uuid} HOST, or: coldframe vm forget {vm.uuid}"
        )
        yield Finding(code="vm-nowhere", severity="info", what=what, repair=repair, **about)
        return
    if vm.state != "shut-off" or vm.uuid in records.busy:
        return
    for file in vm.host_files:
        if file.reason is not None:
            what = f"the {file.type} of VM {vm.name} could not be saved: {file.reason}"
            repair = f"Mend what the reason names, then: coldframe vm sync {vm.uuid}"
            yield Finding(code="host-file-not-saved", severity="warning", what=what, repair=repair, **about)
        elif file.dirty_since is not None:
            what = f"the {file.type} of VM {vm.name} has changed since it was saved: it ran at "
            what += f"{file.dirty_since:%Y-%m-%d %H:%M:%S}"
            repair, safe = f"Save it: coldframe vm sync {vm.uuid}", vm.host in reachable
            yield Finding(code="host-file-dirty", severity="warning", what=what, repair=repair, safe=safe, **about)
