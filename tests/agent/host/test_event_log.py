"""The durable event log: numbers, cursors, segments, kills."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from agent.errors import StorageFailed
from agent.host import files
from agent.host.event_log import RECENT, EventLog
from tests.agent.host.full_disk import full_file_system

VM = UUID(int=5)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with closing(EventLog(tmp_path)) as opened:
        yield opened


def fill(log: EventLog, count: int, reason: str = "x") -> None:
    for _ in range(count):
        log.append("vm.started", "hook", VM, "win11", {"reason": reason})


def numbers(log: EventLog, after: int = 0, limit: int = 10_000) -> list[int]:
    return [event.seq for event in log.read(after, limit).items]


def newest(state_dir: Path) -> Path:
    return max((state_dir / "events").glob("*.jsonl"))


def test_an_event_is_read_as_it_was_appended(log: EventLog) -> None:
    event = log.append("vm.stopped", "hook", VM, "машина", {"reason": "shutdown"}, spool="7:ab")
    answer = log.read(0, 10)
    assert answer.items == [event]
    assert (event.seq, event.vm, event.vm_name, event.data) == (1, VM, "машина", {"reason": "shutdown"})
    assert (answer.next, answer.oldest, answer.log) == (1, 1, log.log)


def test_an_empty_log_answers_with_the_cursor_it_can_serve(log: EventLog) -> None:
    answer = log.read(99, 10)
    assert (answer.items, answer.next, answer.oldest) == ([], 0, 1)


def test_reading_goes_on_at_next(log: EventLog) -> None:
    fill(log, 7)
    first = log.read(2, 3)
    assert [event.seq for event in first.items] == [3, 4, 5]
    assert numbers(log, first.next) == [6, 7]


def test_a_log_opened_again_is_the_same_log_and_its_numbers_go_on(tmp_path: Path) -> None:
    with closing(EventLog(tmp_path)) as log:
        fill(log, 3)
        log.append("vm.stopped", "hook", VM, "win11", {}, spool="9:cd")
    with closing(EventLog(tmp_path)) as again:
        assert (again.log, again.last_seq, again.last_spool) == (log.log, 4, "9:cd")
        assert again.append("host.link", "network").seq == 5
        assert again.read(0, 10).items[:4] == log.read(0, 10).items


def test_a_torn_last_line_is_cut_off_at_every_byte(tmp_path: Path) -> None:
    with closing(EventLog(tmp_path)) as log:
        fill(log, 2)
        whole = newest(tmp_path).stat().st_size
        fill(log, 1)
    path = newest(tmp_path)
    data = path.read_bytes()
    for size in range(whole, len(data)):
        path.write_bytes(data[:size])
        with closing(EventLog(tmp_path)) as again:
            assert numbers(again) == [1, 2]
            assert path.stat().st_size == whole
            fill(again, 1)
            assert numbers(again) == [1, 2, 3]


def test_a_tail_of_zeros_after_a_power_cut_is_cut_off(tmp_path: Path) -> None:
    with closing(EventLog(tmp_path)) as log:
        fill(log, 2)
    with newest(tmp_path).open("ab") as file:
        file.write(b"\0" * 5000 + b"\n" + b"\0" * 10)
    with closing(EventLog(tmp_path)) as again:
        fill(again, 1)
        assert numbers(again) == [1, 2, 3]


def test_a_damaged_line_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    with closing(EventLog(tmp_path)) as log:
        fill(log, 3)
    path = newest(tmp_path)
    lines = path.read_bytes().split(b"\n")
    lines[2] = b"{damaged"
    path.write_bytes(b"\n".join(lines))
    with closing(EventLog(tmp_path)) as again:
        fill(again, 1)
        assert numbers(again) == [1, 3, 4]


@pytest.mark.parametrize("header", [b"", b"{}\n", b"garbage", b"\0" * 64 + b"\n"])
def test_a_damaged_header_begins_a_new_log_and_keeps_the_old_file(tmp_path: Path, header: bytes) -> None:
    with closing(EventLog(tmp_path)) as log:
        fill(log, 3)
    newest(tmp_path).write_bytes(header)
    with closing(EventLog(tmp_path)) as again:
        assert again.log != log.log
        assert (again.last_seq, again.read(3, 10).next) == (0, 0)
    assert len(list((tmp_path / "events").glob("*.damaged-*"))) == 1


def test_old_segments_go_and_the_rest_is_read_across_segments(tmp_path: Path) -> None:
    with closing(EventLog(tmp_path, segment_bytes=1500, segments_kept=3)) as log:
        log.append("vm.stopped", "hook", VM, "win11", {}, spool="1:aa")
        fill(log, 99)
    with closing(EventLog(tmp_path, segment_bytes=1500, segments_kept=3)) as again:
        answer = again.read(0, 1000)
        assert len(list((tmp_path / "events").iterdir())) == 3
        assert [event.seq for event in answer.items] == list(range(answer.oldest, 101))
        assert 80 < answer.oldest < 100
        assert again.last_spool == "1:aa"  # though its segment is gone
        assert again.log == log.log


def test_a_reader_who_was_away_longer_than_memory_holds_reads_the_files(tmp_path: Path) -> None:
    with closing(EventLog(tmp_path)) as log:
        path = newest(tmp_path)
        fill(log, 1)
        header, line, _ = path.read_bytes().split(b"\n")
    count = RECENT + 50
    lines = [line.replace(b'"seq":1,', f'"seq":{seq},'.encode()) for seq in range(1, count + 1)]
    path.write_bytes(b"\n".join([header, *lines, b""]))
    with closing(EventLog(tmp_path)) as again:
        assert numbers(again) == list(range(1, count + 1))
        assert numbers(again, 10, 5) == [11, 12, 13, 14, 15]
        assert numbers(again, count - 2) == [count - 1, count]


def test_an_event_that_finds_the_disk_full_is_not_in_the_log_and_the_next_one_is(tmp_path: Path) -> None:
    with full_file_system(tmp_path, "256k") as release, closing(EventLog(tmp_path)) as log:
        fill(log, 2)
        with pytest.raises(StorageFailed):
            fill(log, 100, "x" * 9_000)
        last = log.last_seq
        release()
        fill(log, 1)
        assert numbers(log)[-2:] == [last, last + 1]
        assert newest(tmp_path).read_bytes().count(b"\n") == last + 2  # the header, and nothing of the failed one
        assert newest(tmp_path).stat().st_size == log._size
        with closing(EventLog(tmp_path)) as again:
            assert numbers(again) == numbers(log)


def test_a_segment_that_was_begun_and_whose_syncing_failed_hides_no_event_and_no_number_comes_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_fail(path: Path, data: bytes, **options: str) -> None:
        real(path, data, **options)  # type: ignore[arg-type]
        raise StorageFailed(action="syncing", path=str(path), reason="Input/output error")

    with closing(EventLog(tmp_path, segment_bytes=700)) as log:
        fill(log, 2)
        real = files.write_atomic
        monkeypatch.setattr(files, "write_atomic", write_and_fail)
        with pytest.raises(StorageFailed):
            fill(log, 1, "long" * 100)
        monkeypatch.undo()
        fill(log, 1)  # this one has room in the segment before
    with closing(EventLog(tmp_path, segment_bytes=700)) as log:
        assert numbers(log) == [1, 2, 3]
        fill(log, 1)
        assert numbers(log) == [1, 2, 3, 4]


def test_appends_from_many_threads_get_numbers_without_a_gap(log: EventLog, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fill, args=(log, 25)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(log) == list(range(1, 101))
    with closing(EventLog(tmp_path)) as again:
        assert again.read(0, 1000) == log.read(0, 1000)


async def test_every_waiter_wakes_on_an_append(log: EventLog) -> None:
    waiters = [asyncio.create_task(log.wait(0, 60)) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.to_thread(log.append, "vm.stopped", "hook", VM, "win11", {})
    assert await asyncio.gather(*waiters) == [True] * 5


async def test_a_wait_for_what_is_there_already_does_not_wait(log: EventLog) -> None:
    fill(log, 1)
    assert await log.wait(0, 60)


async def test_a_wait_ends_when_its_time_is_up(log: EventLog) -> None:
    assert not await log.wait(0, 0.001)
    assert not log._waiters


def test_everything_is_for_root_only(log: EventLog, tmp_path: Path) -> None:
    fill(log, 1)
    assert not [path for path in tmp_path.rglob("*") if path.stat().st_mode & 0o077]


def test_close_gives_the_file_back(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    EventLog(tmp_path).close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
