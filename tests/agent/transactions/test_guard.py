"""Guards: who holds them, what they survive, and that a guard and a start never both win."""

import asyncio
import os
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agent.errors import DomainBusy, DomainStarting, HookLockHeld, StorageFailed
from agent.host.marks import boot_id, hook_lock, process_start, write_mark
from agent.transactions.guard import UNKNOWN, Guards
from tests.agent.host.used_up import no_descriptors
from tests.hooks.hook import VM, Hook

FIRST, SECOND = UUID(int=1), UUID(int=2)
RACES = 150


@pytest.fixture
def guards(tmp_path: Path) -> Guards:
    return Guards(tmp_path)


def mark_starting(state_dir: Path, pid: int, start: str | None = None, boot: str | None = None, vm: UUID = VM) -> Path:
    """Leave the mark that the hook leaves, as if ``pid`` were libvirtd."""
    path = state_dir / "starting" / str(vm)
    values = {
        "boot_id": boot or boot_id(),
        "libvirtd_pid": str(pid),
        "libvirtd_start": start or process_start(pid) or "",
    }
    write_mark(path, values)
    return path


def test_a_guard_tells_who_raised_it_and_when(guards: Guards) -> None:
    guards.raise_guard(VM, "win11", FIRST, "snapshot")
    guard = guards.get(VM)
    assert guard is not None
    assert (guard.transaction, guard.kind) == (FIRST, "snapshot")
    assert abs((datetime.now(UTC) - guard.since).total_seconds()) < 5
    assert guards.all() == {VM: guard}


def test_a_guard_file_has_the_lines_that_the_hook_reads(guards: Guards, tmp_path: Path) -> None:
    guards.raise_guard(VM, "new\nline=x", FIRST, "snapshot")
    path = tmp_path / "guards" / str(VM)
    lines = path.read_text().splitlines()
    assert [line.split("=")[0] for line in lines] == ["transaction", "kind", "since", "name"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_same_transaction_raises_its_guard_again(guards: Guards) -> None:
    guards.raise_guard(VM, "win11", FIRST, "snapshot")
    before = guards.get(VM)
    guards.raise_guard(VM, "win11", FIRST, "snapshot")
    assert guards.get(VM) == before


def test_another_transaction_is_refused_by_the_name_of_the_holder(guards: Guards, tmp_path: Path) -> None:
    guards.raise_guard(VM, "win11", FIRST, "snapshot")
    with pytest.raises(DomainBusy, match=str(FIRST)):
        guards.raise_guard(VM, "win11", SECOND, "revert")
    assert [path.name for path in (tmp_path / "guards").iterdir()] == [str(VM)]


def test_drop_lets_go_once_and_again(guards: Guards) -> None:
    guards.raise_guard(VM, "win11", FIRST, "snapshot")
    guards.drop(VM, FIRST)
    guards.drop(VM, FIRST)
    assert guards.get(VM) is None


def test_drop_leaves_anothers_guard(guards: Guards) -> None:
    guards.raise_guard(VM, "win11", FIRST, "snapshot")
    with pytest.raises(DomainBusy):
        guards.drop(VM, SECOND)
    assert guards.get(VM) is not None


def test_release_removes_any_guard_and_returns_it(guards: Guards, tmp_path: Path) -> None:
    guards.raise_guard(VM, "win11", FIRST, "snapshot")
    mark_starting(tmp_path, os.getpid())
    released = guards.release(VM)
    assert released is not None
    assert released.transaction == FIRST
    assert guards.get(VM) is None
    assert not guards.is_starting(VM)
    assert guards.release(VM) is None


@pytest.mark.parametrize("content", [b"", b"transaction=x\n", b"\xff\xfe"])
def test_a_damaged_guard_belongs_to_nobody_and_stays_until_it_is_released(
    guards: Guards, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "guards" / str(VM)).write_bytes(content)
    (tmp_path / "guards" / "not-a-uuid").touch()
    assert guards.all()[VM].transaction == UNKNOWN
    for call in (guards.drop, lambda vm, transaction: guards.raise_guard(vm, "win11", transaction, "snapshot")):
        with pytest.raises(DomainBusy):
            call(VM, FIRST)
    guards.release(VM)
    guards.raise_guard(VM, "win11", FIRST, "snapshot")


def test_a_start_under_way_refuses_the_guard(guards: Guards, tmp_path: Path) -> None:
    mark_starting(tmp_path, os.getpid())
    with pytest.raises(DomainStarting):
        guards.raise_guard(VM, "win11", FIRST, "snapshot")
    assert guards.get(VM) is None


def test_marks_of_another_boot_another_libvirtd_or_a_dead_one_are_stale(guards: Guards, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    stale = [
        mark_starting(tmp_path, os.getpid(), boot="another"),
        mark_starting(tmp_path, os.getpid(), start="1"),
        mark_starting(tmp_path, dead.pid, start="1"),
        mark_starting(tmp_path, dead.pid),
    ]
    for number, path in enumerate(stale):
        guards.raise_guard(VM, "win11", UUID(int=number + 1), "snapshot")
        assert not path.exists()
        guards.drop(VM, UUID(int=number + 1))
        mark_starting(tmp_path, dead.pid)


@pytest.mark.parametrize("content", [b"", b"boot_id=", b"libvirtd_pid=1\n", b"\0" * 100])
def test_a_mark_torn_by_a_power_cut_is_stale(guards: Guards, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "starting" / str(VM)).write_bytes(content)
    guards.raise_guard(VM, "win11", FIRST, "snapshot")


def test_a_process_name_with_parentheses_and_spaces_is_understood() -> None:
    child = subprocess.Popen(["bash", "-c", "printf ') 1 2 (' > /proc/self/comm; read -r _"], stdin=subprocess.PIPE)
    try:
        assert (process_start(child.pid) or "").isdigit()
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()


def test_a_lock_that_is_never_free_is_an_error_with_a_deadline(tmp_path: Path) -> None:
    with hook_lock(tmp_path), pytest.raises(HookLockHeld, match="nothing was touched"), hook_lock(tmp_path, 0.01):
        pass


async def test_waiting_for_the_lock_does_not_hold_up_the_event_loop(guards: Guards, tmp_path: Path) -> None:
    taken, free = threading.Event(), threading.Event()

    def hold() -> None:
        with hook_lock(tmp_path):
            taken.set()
            free.wait()

    holder = asyncio.create_task(asyncio.to_thread(hold))
    await asyncio.to_thread(taken.wait)
    raising = asyncio.create_task(asyncio.to_thread(guards.raise_guard, VM, "win11", FIRST, "snapshot"))
    await asyncio.sleep(0)
    assert not raising.done()
    free.set()
    await asyncio.gather(raising, holder)


@pytest.mark.parametrize("crash", ["before", "after"])
def test_a_guard_whose_raising_was_killed_is_taken_up_or_swept_by_the_same_transaction(
    guards: Guards, tmp_path: Path, crash: str
) -> None:
    staged = guards._staged(VM, FIRST)
    staged.write_text("torn")
    if crash == "after":
        guards.raise_guard(VM, "win11", FIRST, "snapshot")
    guards.drop(VM, FIRST)
    assert not list((tmp_path / "guards").iterdir())


@pytest.mark.case("S9")
def test_a_start_and_a_guard_raced_never_both_win(tmp_path: Path) -> None:
    hook = Hook(tmp_path, ["sh"]).install()
    guards = hook.guards
    wins = {"start": 0, "guard": 0}
    with ThreadPoolExecutor(2) as pool:
        for _ in range(RACES):
            transaction, gate = uuid4(), threading.Barrier(2)
            start = pool.submit(_start, hook, gate)
            guard = pool.submit(_raise, guards, transaction, gate)
            started, guarded = start.result(), guard.result()
            assert started != guarded
            assert hook.starting() == started
            assert (guards.get(VM) is not None) == guarded
            wins["start" if started else "guard"] += 1
            guards.drop(VM, transaction)
            hook.call("release")
    assert all(wins.values()), wins


def _start(hook: Hook, gate: threading.Barrier) -> bool:
    gate.wait()
    return hook.call("prepare").returncode == 0


def _raise(guards: Guards, transaction: UUID, gate: threading.Barrier) -> bool:
    gate.wait()
    # The hook needs some milliseconds to reach its lock: wait for between none and all of them.
    threading.Event().wait((transaction.int % 100) / 10_000)
    try:
        guards.raise_guard(VM, "win11", transaction, "snapshot")
    except DomainStarting:
        return False
    return True


def test_a_guard_that_cannot_be_read_now_is_not_taken_for_another_transactions(guards: Guards) -> None:
    guards.raise_guard(VM, "win11", FIRST, "snapshot")
    with no_descriptors(), pytest.raises(StorageFailed):
        guards.let_go(VM, FIRST)
    assert guards.get(VM) is not None
    guards.let_go(VM, FIRST)
    assert guards.get(VM) is None
