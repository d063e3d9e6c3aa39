"""Work that runs beside the server for as long as the daemon does, and is started again when it breaks."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

from agent.web.errors import Error
from agent.web.log import WORK_ID, kv

log = logging.getLogger(__name__)

#: After a failure: 1 s, then twice as long each time up to 30 s. One that had run for a minute starts over at 1 s.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0

Sleep = Callable[[float], Awaitable[None]]
T = TypeVar("T")


async def outcome(work: Awaitable[T]) -> T | Exception:
    """Return what the work returns or raises: the root of background work, where nothing may be lost."""
    try:
        return await work
    except Exception as err:  # noqa: BLE001 - the root of background work
        return err


class Background:
    """A group of watchers. Leaving the context ends them all and waits for them."""

    def __init__(self, sleep: Sleep = asyncio.sleep) -> None:
        self._sleep = sleep
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work`` and keep it running; one that returns is started again too."""
        self._tasks.append(asyncio.create_task(keep_going(name, work, self._sleep), name=name))


async def keep_going(
    name: str, work: Callable[[], Awaitable[None]], sleep: Sleep = asyncio.sleep, *, until_done: bool = False
) -> None:
    """Run ``work`` and start it again whenever it breaks, and when it returns unless that means that it is done."""
    WORK_ID.set(name)
    clock = asyncio.get_running_loop().time
    pause_s = FIRST_PAUSE_S
    while True:
        began = clock()
        try:
            await work()
            if until_done:
                return
        except Error as err:
            log.warning(kv("watcher-failed", reason=err, again_in_s=pause_s))
        except Exception:  # the root of background work: it is logged and goes on, nobody else would see it
            log.exception(kv("watcher-broke", again_in_s=pause_s))
        if clock() - began >= STEADY_S:
            pause_s = FIRST_PAUSE_S
        await sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
