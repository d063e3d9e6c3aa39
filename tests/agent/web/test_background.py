"""Watchers are kept running and end with the daemon."""

import asyncio
import logging

import pytest

from agent.errors import EventsLost
from agent.web.background import Background, keep_going


class Clockwork:
    """Sleeps that take no time and are written down; the test ends at the third."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.third = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) == 3:
            self.third.set()
            await asyncio.Event().wait()


@pytest.mark.parametrize("error", [EventsLost(count=1), RuntimeError("a bug"), None])
async def test_a_watcher_that_ends_in_any_way_is_started_again_after_a_growing_pause(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    clockwork, runs = Clockwork(), 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if error is not None:
            raise error

    async with Background(clockwork.sleep) as background:
        background.keep("work", work)
        await clockwork.third.wait()
    assert (runs, clockwork.pauses) == (3, [1.0, 2.0, 4.0])
    assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == (0 if error is None else 3)


async def test_leaving_ends_the_watchers_and_waits_for_them() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")

    async with Background() as background:
        background.keep("work", work)
        await asyncio.sleep(0)
    assert ended == ["work"]


async def test_work_that_can_be_done_is_tried_until_it_is(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[Exception | None] = [RuntimeError("a bug"), EventsLost(count=1), None]

    async def work() -> None:
        if (failure := outcomes.pop(0)) is not None:
            raise failure

    clockwork = Clockwork()
    await keep_going("work", work, clockwork.sleep, until_done=True)
    assert (outcomes, clockwork.pauses) == ([], [1.0, 2.0])
    assert len(caplog.records) == 2
