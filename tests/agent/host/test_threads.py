"""Calls that never return, and those that come after them."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import OutOfThreads
from agent.host.threads import Turns, in_thread, started_pool
from tests.agent.host.used_up import no_threads


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a hanging call waits for; opened at the end, so that no thread is left."""
    opened = threading.Event()
    yield opened
    opened.set()


async def call(turns: Turns, key: str, work: object, within_s: float = 5) -> object:
    async with asyncio.timeout(within_s), turns.take(key) as turn:
        return await asyncio.shield(turn.start(work, (ValueError,)))  # type: ignore[arg-type]


async def test_a_result_and_an_expected_error_reach_the_caller() -> None:
    def fail() -> None:
        raise ValueError("as expected")

    assert await in_thread(lambda: 7, ()) == 7
    with pytest.raises(ValueError, match="as expected"):
        await in_thread(fail, (ValueError,))


async def test_an_unexpected_error_is_reported_and_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda facts: reported.append(facts.exc_type))

    with pytest.raises(RuntimeError, match="without an answer"):
        await in_thread(lambda: 1 / 0, (ValueError,))

    while not reported:
        await asyncio.sleep(0)
    assert reported == [ZeroDivisionError]


async def test_a_call_that_hangs_holds_one_thread_however_often_its_key_is_asked_for(gate: threading.Event) -> None:
    turns, ran = Turns(threads=1), []

    def hang() -> None:
        ran.append("hang")
        gate.wait()

    for _ in range(5):
        with pytest.raises(TimeoutError):
            await call(turns, "stuck", hang, within_s=0.01)

    assert ran == ["hang"]
    assert await call(turns, "other", lambda: "served") == "served"


async def test_a_key_is_served_again_once_its_call_has_ended(gate: threading.Event) -> None:
    turns = Turns(threads=1)
    with pytest.raises(TimeoutError):
        await call(turns, "stuck", gate.wait, within_s=0.01)

    gate.set()

    assert await call(turns, "stuck", lambda: "served") == "served"


async def test_calls_of_one_key_take_turns_and_of_several_keys_run_at_once(gate: threading.Event) -> None:
    turns = Turns(threads=4)
    meeting = threading.Barrier(4, timeout=5)
    inside, most = [], []

    def alone() -> None:
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    await asyncio.gather(*(call(turns, key, meeting.wait) for key in "abcd"))
    await asyncio.gather(*(call(turns, "one", alone) for _ in range(20)))

    assert max(most) == 1


async def test_no_more_threads_than_allowed_run_at_once() -> None:
    turns, lock = Turns(threads=2), threading.Lock()
    inside: list[int] = []
    most: list[int] = []
    pause = threading.Event()

    def work() -> None:
        with lock:
            inside.append(1)
            most.append(len(inside))
        pause.wait(0.005)
        with lock:
            inside.pop()

    await asyncio.gather(*(call(turns, str(number), work) for number in range(10)))

    assert max(most) == 2


async def test_giving_up_while_waiting_for_a_thread_gives_the_turn_back(gate: threading.Event) -> None:
    turns = Turns(threads=1)
    hanging = asyncio.create_task(call(turns, "a", gate.wait))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await call(turns, "b", lambda: None, within_s=0.01)

    gate.set()
    await hanging

    assert await call(turns, "b", lambda: "served") == "served"


async def test_an_error_that_nobody_waits_for_any_more_is_not_reported(
    gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_late() -> None:
        gate.wait()
        raise ValueError("late")

    turns = Turns(threads=1)
    with pytest.raises(TimeoutError):
        await call(turns, "a", fail_late, within_s=0.01)
    gate.set()
    assert await call(turns, "a", lambda: "served") == "served"

    assert caplog.records == []


async def test_where_no_thread_can_be_started_the_caller_is_told_and_nothing_is_done(tmp_path: Path) -> None:
    done = tmp_path / "done"
    with no_threads():
        with pytest.raises(OutOfThreads):
            await in_thread(done.touch, ())
        with pytest.raises(OutOfThreads):
            started_pool(2)
    assert not done.exists()


async def test_a_pool_that_is_started_needs_no_thread_later(tmp_path: Path) -> None:
    asyncio.get_running_loop().set_default_executor(started_pool(3))
    with no_threads():
        await asyncio.gather(*(asyncio.to_thread((tmp_path / name).touch) for name in "abcdef"))
    assert len(list(tmp_path.iterdir())) == 6
