"""Blocking calls that may never return, in threads that nobody has to wait for.

asyncio.to_thread is not for these: its threads are joined when the process ends and its pool is soon full of calls
that hang. Here each call has a daemon thread of its own, calls that share a key take turns, and a waiting call
holds no thread. So at most one thread per key is ever left behind, however often its caller gives up and asks again.

The threads of asyncio.to_thread are started before the agent serves (``started_pool``). A pool that starts them when
they are needed has the work in its queue already when it finds that it cannot: its caller is told that it failed, and
some other thread does it later all the same.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from agent.errors import OutOfThreads

T = TypeVar("T")

#: Reads, writes and syncs at once, over all transactions: a disk is busy long before.
POOL_THREADS = 8


def started_pool(threads: int = POOL_THREADS) -> ThreadPoolExecutor:
    """Return a pool whose threads all run already, so that it starts none later. Raises OutOfThreads."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="files")
    met = threading.Barrier(threads + 1)
    try:
        for _ in range(threads):
            pool.submit(met.wait)
    except RuntimeError as err:
        met.abort()
        pool.shutdown()
        raise OutOfThreads(reason=str(err)) from err
    met.wait()
    return pool


def in_thread(work: Callable[[], T], errors: tuple[type[Exception], ...]) -> asyncio.Future[T]:
    """Start ``work`` in a daemon thread; its result, or the one of ``errors`` that it raised, is the future's.

    Where no thread can be started that is OutOfThreads.
    Any other exception is a defect: it goes to threading.excepthook, and the future gets a RuntimeError. A future that
    nobody waits for any more is set all the same; the work cannot be stopped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    future.add_done_callback(note_failure)

    def settle(outcome: Callable[[], None]) -> None:
        if not future.done():
            outcome()

    def run() -> None:
        failure: Exception = RuntimeError("a call in a thread ended without an answer; its error was logged")
        outcome: Callable[[], None] = lambda: future.set_exception(failure)  # noqa: E731 - replaced below
        try:
            result = work()
            outcome = lambda: future.set_result(result)  # noqa: E731 - see above
        except errors as err:
            failure = err
        finally:
            with contextlib.suppress(RuntimeError):  # the loop may have closed since; nobody waits then
                loop.call_soon_threadsafe(settle, outcome)

    try:
        threading.Thread(target=run, name="blocking-call", daemon=True).start()
    except RuntimeError as err:
        future.set_exception(OutOfThreads(reason=str(err)))
    return future


def note_failure(future: asyncio.Future[Any]) -> None:
    """Mark the future's error as seen, so that asyncio does not report what its caller gave up waiting for."""
    if not future.cancelled():
        future.exception()


class Turn:
    """The right to run calls for one key, one after the other. An asynchronous context manager."""

    def __init__(self, lock: asyncio.Lock, permits: asyncio.Semaphore) -> None:
        self._lock = lock
        self._permits = permits
        self._last: asyncio.Future[Any] | None = None

    async def __aenter__(self) -> "Turn":
        await self._lock.acquire()
        try:
            await self._permits.acquire()
        except BaseException:
            self._lock.release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the thread back to other keys at once, the key only when no call is under way for it."""
        self._permits.release()
        if self._last is None or self._last.done():
            self._lock.release()
        else:
            self._last.add_done_callback(lambda _: self._lock.release())

    def start(self, work: Callable[[], T], errors: tuple[type[Exception], ...]) -> asyncio.Future[T]:
        """Start a call. Wait for it with asyncio.shield: giving up must not mark it as ended."""
        future = in_thread(work, errors)
        self._last = future
        return future


class Turns:
    """Turns by key, and at most ``threads`` of them running calls whose callers still wait."""

    def __init__(self, threads: int) -> None:
        self._permits = asyncio.Semaphore(threads)
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    def take(self, key: Hashable) -> Turn:
        """Return the next turn for this key; it begins when the context is entered."""
        return Turn(self._locks.setdefault(key, asyncio.Lock()), self._permits)
