"""The database: one door, one thread, one connection.

Work is plain synchronous functions, handed in as ``await db.run(fn, *args)``. One thread holds the one connection,
so changes never wait for each other inside this process; a lock of the database keeps other processes (the ``migrate``
and ``token`` commands, a second controller) apart.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar
from urllib.parse import urlsplit

import peewee
from playhouse.migrations import Runner

from agent.web.checkpoint import Checkpoint, no_checkpoint
from agent.web.settings import mask
from controller.backend import Backend
from controller.errors import DatabaseFailed, DatabaseTooNew, DatabaseUnusable
from controller.models import database
from controller.postgresql import Deadlines, Postgresql
from controller.sqlite import Sqlite

P = ParamSpec("P")
T = TypeVar("T")

MIGRATIONS = Path(__file__).parent / "migrations"


class _TakenBack(Exception):
    """Ends a transaction that nothing shall come of."""


class Database:
    """One database, opened and migrated by ``open()``. Only one can be open in a process, since it binds the models."""

    def __init__(self, url: str, checkpoint: Checkpoint = no_checkpoint, deadlines: Deadlines | None = None) -> None:
        self.url = url
        self.checkpoint = checkpoint
        self.deadlines = deadlines or Deadlines()
        self.version = 0
        #: Why it failed last, until it takes a change again.
        self.failing: str | None = None
        self._pulse = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        self._real: Backend | None = None

    async def open(self, *, dry_run: bool = False) -> list[str]:
        """Connect and apply the migrations that are missing; return their names. With ``dry_run`` none is applied.

        Raises DatabaseUnusable, DatabaseTooNew, DatabaseFailed; nothing is left open then.
        """
        if database.obj is not None:
            raise RuntimeError("another database is open in this process")
        self._real = _backend(self.url, self.deadlines)
        self._real.checkpoint = self.checkpoint
        database.initialize(self._real)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, _open, self._real, mask(self.url))
            return await self.run(take_back, migrate) if dry_run else await self.run(migrate)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Wait for the work that was begun, then disconnect. Closing twice is allowed."""
        if self._real is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._real.close)
            self._real = None
            database.initialize(None)
        self._thread.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``fn`` on the database's thread. Work that was begun goes on when the caller is cancelled.

        Raises DatabaseFailed where the database refuses, and whatever ``fn`` raises.
        """
        loop, asked_at_s = asyncio.get_running_loop(), time.monotonic()
        return await loop.run_in_executor(
            self._thread, lambda: self._work(loop, asked_at_s, name_of(fn), lambda: fn(*args, **kwargs))
        )

    async def changed(self, since: int) -> int:
        """Wait until ``version`` is no longer ``since``; return it."""
        while self.version == since:
            await self._pulse.wait()
        return self.version

    def _work(self, loop: asyncio.AbstractEventLoop, asked_at_s: float, name: str, work: Callable[[], T]) -> T:
        real = self._real
        if real is None:
            raise DatabaseFailed(reason="it is not open")
        before, real.work = real.writes, name
        try:
            real.begin_work(asked_at_s)
            result = work()
        except DatabaseFailed as err:
            self.failing = str(err)
            raise
        except peewee.PeeweeException as err:
            if real.is_mistake(err):
                raise
            self.failing = real.failed(err)
            raise DatabaseFailed(reason=self.failing) from err
        finally:
            if real.writes != before:
                loop.call_soon_threadsafe(self._beat)
        if real.writes != before:
            self.failing = None
        return result

    def _beat(self) -> None:
        self.version += 1
        self._pulse.set()
        self._pulse = asyncio.Event()


@contextlib.contextmanager
def write() -> Iterator[None]:
    """Everything inside happens, or nothing does; what is read inside stays true until the end.

    Nobody else writes meanwhile, from the start: a transaction that reads first and locks later could find the rows
    changed and would have to be run again. Inside another ``write()`` it is a part of that one.
    """
    real: Backend = database.obj
    if real.transaction_depth():
        with real.atomic():
            yield
        return
    with real.writing():
        yield
        real.checkpoint(f"before database {real.work}")
    real.checkpoint(f"after database {real.work}")


@contextlib.contextmanager
def read() -> Iterator[None]:
    """Several queries inside see one state of the database. Inside ``write()`` they see what that has written."""
    real: Backend = database.obj
    with real.atomic() if real.transaction_depth() else real.reading():
        yield


def take_back(work: Callable[[], T]) -> T:
    """Do the work in a transaction that nothing comes of; nobody hears of it. Raises what the work raises.

    On the database's thread, as all work; not inside another transaction.
    """
    real = database.obj
    written = real.writes
    results: list[T] = []
    try:
        with contextlib.suppress(_TakenBack), write():
            results.append(work())
            raise _TakenBack
    finally:
        real.writes = written
    return results[0]


def touched() -> set[str]:
    """Return the tables that statements have changed since this was asked last."""
    real = database.obj
    found: set[str] = real.touched
    real.touched = set()
    return found


def migrate() -> list[str]:
    """Apply the migrations that are missing, in order, each once and whole; return their names.

    Run by ``Database.open``. Two processes at once: the second waits and finds nothing left to do.
    Raises DatabaseTooNew.
    """
    runner = Runner(database.obj, directory=str(MIGRATIONS), table_name="schema_migration")
    with write():
        unknown = [migration.name for migration in runner.status() if migration.path is None]
        if unknown:
            raise DatabaseTooNew(unknown=", ".join(unknown))
        applied: list[str] = runner.up()
    return applied


def probe() -> None:
    """Change a row to what it is: a database that takes this works again."""
    with write():
        database.execute_sql('UPDATE "identity" SET "uuid" = "uuid"')


def name_of(fn: Callable[..., object]) -> str:
    """Return what the points of a function's commits are named after, such as ``store.operations.finish``."""
    return f"{fn.__module__}.{getattr(fn, '__qualname__', type(fn).__name__)}".removeprefix("controller.")


def _backend(url: str, deadlines: Deadlines) -> Backend:
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        # sqlite:////absolute/path and sqlite:///relative/path, as elsewhere; a path is not percent-decoded.
        return Sqlite(rest[1:])
    if scheme == "postgresql" and urlsplit(url).path.strip("/"):
        return Postgresql(url, deadlines)
    raise DatabaseUnusable(url=mask(url), reason="expected sqlite:////path/to/file or postgresql://host/name")


def _open(real: Backend, shown_url: str) -> None:
    try:
        real.open()
    except OSError as err:
        raise DatabaseUnusable(url=shown_url, reason=str(err.strerror)) from err
    except peewee.PeeweeException as err:
        raise DatabaseUnusable(url=shown_url, reason=real.unopened(err)) from err
