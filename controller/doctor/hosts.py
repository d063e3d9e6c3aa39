"""What a look at one host shows to be wrong with the host itself. Pure."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from agent.wire.finding import Finding
from agent.wire.transaction import Transaction
from agent.wire.upkeep import Leftover
from controller.doctor.look import Look, Together
from controller.store.survey import Records

#: Prepare and commit take seconds. A merge may take hours and is not judged by the clock.
HELD_UP_AFTER = timedelta(minutes=15)
_LAPSED_AFTER = timedelta(minutes=1)
#: Clocks that are kept right differ by less than a second; this leaves room for a slow answer.
_APART = timedelta(minutes=5)


def judge(look: Look, records: Records, version: str, now: datetime, together: Together) -> list[Finding]:
    """Return what is wrong with one host, in the light of what all of them show."""
    if look.facts is None:
        reason = "; ".join(look.unanswered) or "no answer"
        repair = "See that coldframe-agent runs there and can be reached: systemctl status coldframe-agent"
        return [_finding(look, "host-unreachable", f"host {look.host} does not answer: {reason}", repair)]
    checks = (
        _facts(look, version),
        _clock(look, now),
        _keeper(look, records),
        _guards(look),
        _transactions(look, look.facts.now or now),
        _leftovers(look, together),
    )
    return [finding for check in checks for finding in check]


def _facts(look: Look, version: str) -> Iterator[Finding]:
    facts = look.facts
    if facts is None:
        return
    if facts.hook != "ok":
        what = f"the start hook of host {look.host} is not in force ({facts.hook}): VMs start unguarded"
        repair = "Install it and restart libvirtd: make install; see hooks/README.md"
        yield _finding(look, "hook-not-in-force", what, repair)
    if not facts.libvirt_connected:
        what = f"the agent of host {look.host} is not connected to libvirt"
        yield _finding(look, "libvirt-away", what, "See that libvirtd runs; the agent reconnects by itself")
    if facts.agent_version != version:
        what = f"the agent of host {look.host} has version {facts.agent_version}, the controller has {version}"
        yield _finding(look, "version-mismatch", what, "Install the same version on both", severity="warning")
    for reason in look.unanswered:
        what = f"host {look.host} could not be looked at as a whole: {reason}"
        yield _finding(
            look, "host-partly-unknown", what, "Mend what the reason says and look again", severity="warning"
        )
    for vm in look.vms:
        problems = [vm.problem] if vm.problem else [one.problem for one in vm.disks if one.problem]
        for problem in problems:
            what = f"VM {vm.name} cannot be worked with: {problem}"
            yield _finding(look, "vm-unreadable", what, "Mend what the reason names; see: virsh dumpxml", vm=vm.uuid)


def _clock(look: Look, now: datetime) -> Iterator[Finding]:
    there = None if look.facts is None else look.facts.now
    if there is not None and abs(there - now) > _APART:
        told = f"the clock of host {look.host} shows {there:%Y-%m-%d %H:%M:%S} UTC where the controller's shows "
        what = f"{told}{now:%Y-%m-%d %H:%M:%S}: no work depends on it, but what happened when cannot be told"
        yield _finding(look, "clock-apart", what, "Correct whichever is wrong; see timedatectl", severity="warning")


def _keeper(look: Look, records: Records) -> Iterator[Finding]:
    keeper = None if look.facts is None else look.facts.keeper
    if keeper is not None and keeper.controller != records.own:
        what = f"controller {keeper.controller} works with host {look.host} since {keeper.since:%Y-%m-%d %H:%M:%S}"
        what += f"; this one is {records.own}, and whatever it asks for there is refused"
        repair = (
            f"Remove the host here: coldframe host remove {look.host}. Where the other controller is gone or gives "
        )
        repair += "it up, remove it there and run on the host: coldframe-agent forget-controller"
        yield _finding(look, "host-kept", what, repair)


def _guards(look: Look) -> Iterator[Finding]:
    """A guard without a transaction that is under way keeps a VM from starting for nothing."""
    under_way = look.open_transactions()
    for vm in look.vms:
        if vm.guard is not None and vm.guard.transaction not in under_way:
            what = f"VM {vm.name} is kept from starting by a guard that {vm.guard.kind} transaction "
            what += f"{vm.guard.transaction} left behind"
            repair = f"On host {look.host}: coldframe-agent release {vm.name}"
            yield _finding(look, "guard-left-behind", what, repair, safe=True, vm=vm.uuid)


def _transactions(look: Look, now: datetime) -> Iterator[Finding]:
    """``now`` is the host's own time, as theirs are."""
    for one in look.open_transactions().values():
        if reason := _held_up(one, now):
            what = f"{one.kind} transaction {one.id} is {one.state} since {one.started_at:%Y-%m-%d %H:%M:%S}: {reason}"
            repair = f"See the agent's log on host {look.host}; it tries again by itself, and at every start"
            yield _finding(look, "transaction-held-up", what, repair, vm=one.vm)


def _held_up(one: Transaction, now: datetime) -> str | None:
    if one.error is not None:
        return one.error.detail
    if one.state == "prepared":
        lapsed = one.lease_expires_at is not None and now - one.lease_expires_at > _LAPSED_AFTER
        return "its lease has run out and it was not undone" if lapsed else None
    if one.kind == "delete":
        return None
    return "it takes too long" if now - one.started_at > HELD_UP_AFTER else None


def _leftovers(look: Look, together: Together) -> Iterator[Finding]:
    if look.leftovers is None:
        return
    own = {one.id for one in look.transactions}
    for one in look.leftovers.items:
        if one.transaction in together.at_work:
            continue
        if one.kind == "staged" and one.removable and (one.transaction in own or together.complete):
            what = f"{one.path} was put aside by work that has ended"
            yield _finding(look, "staged-leftover", what, "Remove it", severity="warning", safe=True, path=one.path)
        elif one.kind == "overlay" and one.path not in together.named:
            yield _stray(look, one)
    if not look.leftovers.complete:
        what = f"the search of host {look.host} for files left behind met its limit or a directory that it cannot read"
        yield _finding(look, "search-incomplete", what, "Name fewer directories in allowed_image_dirs", severity="info")


def _stray(look: Look, one: Leftover) -> Finding:
    """An overlay of ours that nobody names. It may hold a guest's data, so it is only ever named."""
    what = f"{one.path} is named like an overlay of Coldframe, and no record and no domain names it"
    repair = "If nobody misses it, move it away, and remove it later"
    if one.dependents:
        what += f"; {', '.join(one.dependents)} stand(s) on it"
        repair = "Leave it while something stands on it"
    unreadable = look.leftovers.unreadable if look.leftovers else []
    if unreadable:
        repair += f". It may belong to a VM whose disks cannot be read: {', '.join(unreadable)}"
    return _finding(look, "stray-overlay", what, repair, severity="warning", path=one.path)


def _finding(look: Look, code: str, what: str, repair: str, **more: object) -> Finding:
    values: dict[str, object] = {"severity": "error", **more}
    return Finding(code=code, what=what, repair=repair, host=look.host, **values)  # type: ignore[arg-type]
