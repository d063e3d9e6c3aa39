"""The hook's notes become events: in order, once, whenever the agent dies."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from agent.errors import StorageFailed
from agent.host import event_log, files, marks, spool
from agent.host.event_log import EventLog
from agent.host.spool import Spool
from agent.wire.event import HostEvent
from tests.hooks.hook import VM, Hook

WATCHED = {module.__file__ for module in (event_log, files, marks, spool)}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with closing(EventLog(tmp_path)) as opened:
        yield opened


def note(state_dir: Path, number: int, **values: str) -> Path:
    """Leave a note as the hook does."""
    facts = {"type": "vm.stopped", "vm": str(VM), "name": "win11", "at": "2026-11-22T08:54:24.979625567Z", **values}
    path = state_dir / "spool" / f"{number:020}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(marks.format_mark(facts))
    return path


def events(log: EventLog) -> list[HostEvent]:
    return log.read(0, 10_000).items


def reasons(log: EventLog) -> list[str]:
    return [event.data.get("reason", "") for event in events(log)]


def left(state_dir: Path) -> list[str]:
    return sorted(path.name for path in (state_dir / "spool").iterdir() if path.name not in {"rejected", ".seq"})


def test_a_note_becomes_an_event_with_its_own_time(tmp_path: Path, log: EventLog) -> None:
    note(tmp_path, 1, reason="shutdown", boot_id="b", name="машина")
    (event,) = Spool(tmp_path).drain(log)
    assert events(log) == [event]
    assert (event.type, event.source, event.vm, event.vm_name) == ("vm.stopped", "hook", VM, "машина")
    assert event.at == datetime(2026, 11, 22, 8, 54, 24, 979625, UTC)
    assert event.data == {"reason": "shutdown", "boot_id": "b"}
    assert not left(tmp_path)


@pytest.mark.case("B13")
def test_notes_written_while_the_agent_was_dead_are_worked_off_in_order_and_once(tmp_path: Path) -> None:
    hook = Hook(tmp_path, ["sh"]).install()
    for operation in ("prepare", "started", "stopped", "release") * 3:
        hook.call(operation)
    with closing(EventLog(hook.state)) as log:
        list(Spool(hook.state).drain(log))
        assert [event.type for event in events(log)] == ["vm.starting", "vm.started", "vm.stopped"] * 3
        assert list(Spool(hook.state).drain(log)) == []
        assert [event.at for event in events(log)] == sorted(event.at for event in events(log))


@pytest.mark.parametrize("at", ["", "yesterday", "2026-11-22T08:54:24.%NZ"])
def test_a_note_without_a_time_has_that_of_its_file(tmp_path: Path, log: EventLog, at: str) -> None:
    os.utime(note(tmp_path, 1, at=at), (1_700_000_000, 1_700_000_000))
    (event,) = Spool(tmp_path).drain(log)
    assert event.at == datetime.fromtimestamp(1_700_000_000, UTC)


def test_a_number_used_again_after_the_counter_was_lost_is_not_taken_for_the_old_note(
    tmp_path: Path, log: EventLog
) -> None:
    note(tmp_path, 1, reason="first")
    list(Spool(tmp_path).drain(log))
    note(tmp_path, 1, reason="second")
    list(Spool(tmp_path).drain(log))
    assert reasons(log) == ["first", "second"]


def test_a_note_whose_file_outlived_its_event_is_not_logged_again(tmp_path: Path) -> None:
    path = note(tmp_path, 1, reason="first")
    data = path.read_bytes()
    with closing(EventLog(tmp_path)) as log:
        list(Spool(tmp_path).drain(log))
    path.write_bytes(data)
    note(tmp_path, 2, reason="second")
    with closing(EventLog(tmp_path)) as log:
        list(Spool(tmp_path).drain(log))
        assert reasons(log) == ["first", "second"]


def test_what_is_not_a_note_is_set_aside_reported_and_does_not_hold_up_the_rest(tmp_path: Path, log: EventLog) -> None:
    note(tmp_path, 1, type="vm.exploded")
    note(tmp_path, 2, vm="no uuid")
    note(tmp_path, 3, reason="x" * 70_000)
    (tmp_path / "spool" / f"{4:020}").write_bytes(b"\xff\0\n" * 9)
    (tmp_path / "spool" / f"{5:020}").mkdir()
    (tmp_path / "spool" / f"{6:020}").symlink_to("/etc/passwd")
    note(tmp_path, 7, reason="good")
    (tmp_path / "spool" / "somebody's file").touch()
    drained = list(Spool(tmp_path).drain(log))
    assert [event.type for event in drained] == ["spool.rejected"] * 6 + ["vm.stopped", "spool.rejected"]
    assert drained[0].data == {"file": f"{1:020}", "reason": "its type is not one that the hook writes"}
    assert not left(tmp_path)
    assert len(list((tmp_path / "spool" / "rejected").iterdir())) == 7
    assert list(Spool(tmp_path).drain(log)) == []


def test_a_note_with_bytes_that_are_no_utf_8_is_still_an_event(tmp_path: Path, log: EventLog) -> None:
    path = note(tmp_path, 1)
    path.write_bytes(path.read_bytes().replace(b"win11", b"win\xff"))
    assert next(Spool(tmp_path).drain(log)).vm_name == "win\ufffd"


def test_what_a_killed_hook_began_is_left_until_it_is_old(tmp_path: Path, log: EventLog) -> None:
    begun = tmp_path / "spool" / f".{1:020}.new"
    begun.parent.mkdir()
    begun.touch()
    os.utime(begun, (time.time() - 864_000,) * 2)  # or the clock was set ahead since
    moments = iter((0.0, 59.0, 61.0, 120.0, 122.0))
    drained = Spool(tmp_path, monotonic=lambda: next(moments))

    def stays() -> bool:
        assert list(drained.drain(log)) == []
        return begun.exists()

    assert [stays(), stays()] == [True, True]
    os.utime(begun)  # another hook begins one under the same name
    assert [stays(), stays(), stays()] == [True, True, False]


def test_an_event_log_that_cannot_be_written_leaves_the_note_for_later(tmp_path: Path, log: EventLog) -> None:
    note(tmp_path, 1, reason="first")
    descriptor = log._descriptor
    log._descriptor = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(StorageFailed):
        list(Spool(tmp_path).drain(log))
    os.close(log._descriptor)
    log._descriptor = descriptor
    list(Spool(tmp_path).drain(log))
    assert reasons(log) == ["first"]


async def test_changed_answers_at_once_when_there_is_a_note(tmp_path: Path) -> None:
    note(tmp_path, 1)
    assert await Spool(tmp_path).changed(60)


async def test_changed_sees_a_note_that_comes_later(tmp_path: Path) -> None:
    watched = asyncio.create_task(Spool(tmp_path, poll_s=0.001).changed(60))
    await asyncio.sleep(0)
    note(tmp_path, 1)
    assert await watched


async def test_changed_gives_up_when_its_time_is_up(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / ".seq").write_text("4")
    assert not await Spool(tmp_path, poll_s=0.001).changed(0.003)


def die_at(line: int) -> None:
    """Kill this process as by SIGKILL when it comes to the ``line``-th line of the modules under test."""
    count = 0

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            count += 1
            if count == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def drain_in_child(state_dir: Path, line: int) -> bool:
    """Open the log and drain in a process that dies at ``line``; say whether it came to the end alive."""
    child = os.fork()
    if child == 0:
        die_at(line)
        list(Spool(state_dir).drain(EventLog(state_dir, segment_bytes=400, segments_kept=50)))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.case("B13")
@pytest.mark.parametrize("share", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_line_the_events_are_in_order_and_once(tmp_path: Path, share: int) -> None:
    line, alive = 0, False
    while not alive:
        line += share
        state = tmp_path / str(line)
        state.mkdir()
        for number in (1, 2):
            note(state, number, reason=str(number))
        (state / "spool" / "junk").touch()
        alive = drain_in_child(state, line)
        with closing(EventLog(state, segment_bytes=400, segments_kept=50)) as log:
            list(Spool(state).drain(log))
            assert reasons(log)[:2] == ["1", "2"], line
            assert [event.seq for event in events(log)] == [1, 2, 3], line
        assert not left(state), line
        assert not [path for path in (state / "events").iterdir() if path.suffix != ".jsonl"], line
    assert line > 100
