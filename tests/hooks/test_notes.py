"""The notes that the hook leaves, over whole lives of a VM, in the order in which libvirt 9.0 calls it."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.hooks.hook import TRANSACTION, VM, Hook


def life(hook: Hook, *operations: str, extra: str = "-") -> None:
    for operation in operations:
        hook.call(operation, extra=extra)


def numbers(hook: Hook) -> list[int]:
    return sorted(int(path.name) for path in (hook.state / "spool").glob("[0-9]*"))


def test_a_start_and_a_stop_leave_three_notes_and_no_mark(hook: Hook) -> None:
    life(hook, "prepare", "start", "started")
    assert not hook.starting()
    life(hook, "stopped", "release", extra="shutdown")
    assert hook.types() == ["vm.starting", "vm.started", "vm.stopped"]
    assert hook.notes()[-1]["reason"] == "shutdown"
    assert numbers(hook) == [1, 2, 3]


def test_a_refused_start_is_no_stop(hook: Hook) -> None:
    hook.guards.raise_guard(VM, "win11", TRANSACTION, "revert")
    life(hook, "prepare", "stopped", "release")
    assert hook.types() == ["vm.start-refused"]
    assert not list((hook.state / "refused").iterdir())


def test_a_start_that_fails_later_is_a_stop_with_its_reason_and_leaves_no_mark(hook: Hook) -> None:
    life(hook, "prepare", "start", "stopped", "release")
    assert not hook.starting()
    assert [(note["type"], note["reason"]) for note in hook.notes()][1:] == [("vm.stopped", "start-failed")]


def test_a_stop_counts_when_libvirtd_died_between_a_refusal_and_its_release(hook: Hook) -> None:
    hook.guards.raise_guard(VM, "win11", TRANSACTION, "revert")
    life(hook, "prepare")
    hook.guards.drop(VM, TRANSACTION)
    life(hook, "prepare", "started", "stopped", "release")
    assert hook.types() == ["vm.start-refused", "vm.starting", "vm.started", "vm.stopped"]


def test_a_stop_of_a_vm_that_ran_before_the_hook_was_there_is_noted(hook: Hook) -> None:
    life(hook, "stopped", "release")
    assert hook.types() == ["vm.stopped"]


def test_a_stop_reason_that_is_no_word_is_dropped(hook: Hook) -> None:
    life(hook, "stopped", extra="a=b\ntype=vm.started")
    assert hook.notes()[0]["reason"] == ""


@pytest.mark.parametrize("counter", ["", "garbage", "007", "9" * 30, "-3", "1", "2\n3"])
def test_the_numbers_go_on_above_the_highest_note_when_the_counter_is_lost(hook: Hook, counter: str) -> None:
    life(hook, *["stopped"] * 3)
    (hook.state / "spool" / ".seq").write_text(counter)
    life(hook, "stopped")
    assert numbers(hook) == [1, 2, 3, 4]


def test_the_numbers_go_on_when_the_spool_was_emptied(hook: Hook) -> None:
    life(hook, *["stopped"] * 11)
    for path in (hook.state / "spool").glob("[0-9]*"):
        path.unlink()
    life(hook, "stopped")
    assert numbers(hook) == [12]


def test_strange_files_in_the_spool_do_not_disturb_the_numbers(hook: Hook) -> None:
    life(hook, "stopped")
    for name in ("9" * 20, "00000000000000000009junk", "x y"):
        (hook.state / "spool" / name).touch()
    (hook.state / "spool" / ".seq").unlink()
    life(hook, "stopped")
    assert (hook.state / "spool" / f"{2:020}").exists()


def test_hooks_at_the_same_time_never_share_a_number(hook: Hook) -> None:
    with ThreadPoolExecutor(8) as pool:
        results: list[subprocess.CompletedProcess[bytes]] = list(pool.map(hook.call, ["stopped"] * 40))
    assert {result.returncode for result in results} == {0}
    assert numbers(hook) == list(range(1, 41))
