"""The hook under a real libvirtd, with nothing of the agent running."""

import subprocess
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agent.host.event_log import EventLog
from agent.host.spool import Spool
from agent.transactions.expected import Expected
from agent.transactions.guard import Guards
from agent.wire.event import HostEvent
from tests.lab.fixtures import GuestFactory
from tests.lab.guest import Guest
from tests.lab.paths import HOOK, NVRAM, PROJECT, PYTHON, STATE_DIR, SWTPM
from tests.lab.waiting import wait_until

pytestmark = pytest.mark.real

TRANSACTION = UUID("0f7c2c54-6a63-4a0e-9d0a-6ad2a0f3c0de")
RACES = 12
#: Another hook, after ours in byte order, that holds a start up between prepare and started.
HOLD = "60-hold"
HOLDING_HOOK = '#!/bin/sh\n[ "$2" != start ] || { touch /run/held; while [ -e /run/held ]; do sleep 0.01; done; }\n'
RAISE = """
import sys, time
from pathlib import Path
from uuid import UUID
from agent.errors import DomainStarting
from agent.transactions.guard import Guards
guards = Guards(Path(sys.argv[1]))
print("ready", flush=True)
time.sleep(float(sys.stdin.readline()))
try:
    guards.raise_guard(UUID(sys.argv[2]), "vm", UUID(sys.argv[3]), "snapshot")
    print("raised")
except DomainStarting:
    print("starting")
"""


def state(vm: Guest) -> Path:
    return vm.host.path(STATE_DIR)


def try_start(vm: Guest) -> str:
    """Start it with virsh; return what virsh said on stderr, or nothing when it started."""
    done = vm.host.virsh("start", str(vm.uuid), check=False)
    assert (done.returncode == 0) == (not done.stderr.strip())
    return " ".join(done.stderr.split())


class Raiser:
    """Raises a guard as the agent on that host would: it must see libvirtd under the process id that the hook saw."""

    def __init__(self, vm: Guest, transaction: UUID = TRANSACTION) -> None:
        argv: list[str | Path] = [PYTHON, "-c", RAISE, STATE_DIR, str(vm.uuid), str(transaction)]
        self._process = vm.host.popen(argv, cwd=PROJECT)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def go(self, after_s: float = 0) -> "Raiser":
        assert self._process.stdin is not None
        self._process.stdin.write(f"{after_s}\n")
        self._process.stdin.flush()
        return self

    def outcome(self) -> str:
        """Return ``raised`` or ``starting``."""
        return self._process.communicate()[0].strip()


def begin_start(vm: Guest) -> subprocess.Popen[str]:
    return vm.host.popen(["virsh", "-q", "-c", "qemu:///system", "start", str(vm.uuid)])


def events(vm: Guest) -> list[HostEvent]:
    """Drain the spool as the agent does at its start; return the VM's events."""
    with closing(EventLog(state(vm))) as log:
        list(Spool(state(vm)).drain(log))
        return [event for event in log.read(0, 10_000).items if event.vm == vm.uuid]


def types(vm: Guest) -> list[str]:
    return [event.type for event in events(vm)]


@pytest.fixture
def vm(guest: GuestFactory) -> Guest:
    """A VM that has run once, so that its NVRAM and TPM exist and are expected."""
    made = guest()
    made.start()
    made.destroy()
    Expected(state(made)).write(made.uuid, made.name, None, NVRAM, SWTPM / str(made.uuid))
    return made


@pytest.mark.case("S8")
def test_a_guard_refuses_virsh_start_with_our_message_and_is_no_stop(vm: Guest) -> None:
    guards = Guards(state(vm))
    before = len(events(vm))
    guards.raise_guard(vm.uuid, vm.name, TRANSACTION, "snapshot")
    said = try_start(vm)
    assert f"coldframe: the start of {vm.name} is refused" in said
    assert f"operation: snapshot, transaction: {TRANSACTION}" in said
    assert f"coldframe-agent release {vm.name}" in said
    assert vm.state() == "shut off"
    assert types(vm)[before:] == ["vm.start-refused"]
    guards.drop(vm.uuid, TRANSACTION)
    vm.start()
    assert vm.state() == "running"


@pytest.mark.case("B13")
def test_events_of_a_dead_agents_time_come_in_order_and_once(vm: Guest) -> None:
    vm.start()
    vm.host.virsh("suspend", str(vm.uuid))
    vm.host.virsh("resume", str(vm.uuid))
    vm.destroy()
    life = ["vm.starting", "vm.started", "vm.stopped"]
    assert types(vm) == life * 2
    assert types(vm) == life * 2
    seen = events(vm)
    assert [event.at for event in seen] == sorted(event.at for event in seen)


def test_a_start_that_fails_after_the_hook_leaves_no_mark(vm: Guest) -> None:
    vm.host.path(vm.disk_path("vdb")).unlink()
    assert "vd" in try_start(vm) or "No such file" in try_start(vm)
    assert not Guards(state(vm)).is_starting(vm.uuid)
    assert not (state(vm) / "starting" / str(vm.uuid)).exists()
    last = events(vm)[-1]
    assert (last.type, last.data["reason"]) == ("vm.stopped", "start-failed")


def test_a_domain_with_more_xml_than_a_pipe_holds_starts_and_stops(vm: Guest) -> None:
    words = ["--uri", "http://example.org/x", "--key", "x", "--set", f"<big>{'y' * 100_000}</big>", "--config"]
    vm.host.virsh("metadata", str(vm.uuid), *words)
    vm.start()
    vm.destroy()
    assert types(vm)[-3:] == ["vm.starting", "vm.started", "vm.stopped"]


def test_a_running_vm_outlives_a_restart_of_libvirtd(vm: Guest) -> None:
    vm.start()
    vm.host.restart_libvirtd()
    assert vm.state() == "running"


@pytest.mark.case("P4")
@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_vm_without_its_nvram_starts_once_after_accept_blank(vm: Guest, damage: str) -> None:
    nvram = vm.host.path(vm.nvram)
    nvram.unlink() if damage == "missing" else nvram.write_bytes(b"")
    said = try_start(vm)
    assert f"its NVRAM {vm.nvram} is {damage}" in said
    assert f"coldframe-agent accept-blank {vm.name}" in said
    assert nvram.exists() == (damage == "empty")
    Guards(state(vm)).accept_blank(vm.uuid)
    assert try_start(vm) == ""
    vm.destroy()
    assert nvram.stat().st_size > 100_000
    nvram.unlink()
    assert "accept-blank" in try_start(vm)


@pytest.mark.case("P4")
@pytest.mark.parametrize("damage", ["missing", "empty directory", "empty state"])
def test_a_vm_without_its_tpm_state_starts_once_with_a_whole_new_tpm_after_accept_blank(vm: Guest, damage: str) -> None:
    key = vm.tpm.ek_public()
    directory = vm.host.path(vm.tpm_dir)
    for path in directory.iterdir():
        path.unlink()
    if damage == "empty state":
        (directory / "tpm2-00.permall").touch()
    if damage == "missing":
        directory.rmdir()
    assert "holds no TPM state" in try_start(vm)
    Guards(state(vm)).accept_blank(vm.uuid)
    assert try_start(vm) == ""
    vm.destroy()
    assert vm.tpm.ek_public() != key
    (directory / "tpm2-00.permall").unlink()
    assert "accept-blank" in try_start(vm)


def test_a_renamed_vm_is_told_where_its_nvram_is(vm: Guest) -> None:
    old = vm.nvram
    new = NVRAM / f"{vm.name}-renamed_VARS.fd"
    vm.host.virsh("domrename", vm.name, f"{vm.name}-renamed")
    assert f"mv '{old}' '{new}'" in try_start(vm)
    vm.host.path(old).rename(vm.host.path(new))
    assert try_start(vm) == ""


@pytest.mark.case("S9")
def test_a_guard_is_refused_while_a_start_is_under_way_and_not_after_libvirtd_died_in_it(vm: Guest) -> None:
    held, hold = vm.host.path("/run/held"), vm.host.path(HOOK.with_name(HOLD))
    hold.write_text(HOLDING_HOOK)
    hold.chmod(0o755)
    try:
        starting = begin_start(vm)
        wait_until("the held start", held.exists, 20)
        assert Raiser(vm).go().outcome() == "starting"
        vm.host.kill_libvirtd()
        held.unlink()
        starting.communicate()
        assert Raiser(vm).go().outcome() == "raised"
    finally:
        held.unlink(missing_ok=True)
        hold.unlink()
        vm.host.restart_libvirtd()
    assert vm.state() == "shut off"
    assert "is refused" in try_start(vm)
    Guards(state(vm)).release(vm.uuid)


@pytest.mark.case("S9")
def test_real_starts_and_guards_raced_never_both_win(vm: Guest) -> None:
    wins = set()
    for number in range(RACES):
        transaction = uuid4()
        raiser = Raiser(vm, transaction)
        start = begin_start(vm)
        raised = raiser.go(after_s=number * 0.01).outcome() == "raised"
        # What the agent does after raising a guard: a domain that is active then was started before it.
        guarded = raised and vm.state() == "shut off"
        said = start.communicate()[1]
        assert ("is refused" in said) == guarded
        assert vm.state() == ("shut off" if guarded else "running")
        wins.add(guarded)
        Guards(state(vm)).release(vm.uuid)
        vm.destroy()
    assert wins == {True, False}
