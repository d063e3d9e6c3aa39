"""The database: one door, one thread, one connection.

Work is plain synchronous functions, handed in as ``await db.run(fn, *args)``. One thread holds the one connection,
so changes never wait for each other inside this process; SQLite's own lock keeps other processes (the ``migrate``
and ``token`` commands) apart. PostgreSQL is used the same way.
"""

import asyncio
import contextlib
import logging
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar
from urllib.parse import urlsplit

import peewee
from playhouse.migrations import Runner

from agent.web.checkpoint import Checkpoint, no_checkpoint
from controller.errors import DatabaseFailed, DatabaseTooNew, DatabaseUnusable
from controller.models import database

log = logging.getLogger("coldframe.database")

P = ParamSpec("P")
T = TypeVar("T")

MIGRATIONS = Path(__file__).parent / "migrations"

_SQLITE_PRAGMAS = {
    "journal_mode": "wal",  # readers in other processes (a backup, the token command) do not stop us
    "synchronous": "full",  # an answer that was given survives the power cut that follows it
    "foreign_keys": 1,
    "busy_timeout": 10_000,  # ms that we wait for another process: far more than its longest transaction
    "secure_delete": 1,  # deleted TPM states are overwritten, not left in free pages
}

#: A server that is away, a lock that somebody holds, a statement that hangs: each ends as DatabaseFailed.
_POSTGRESQL_DEADLINES: dict[str, Any] = {
    "connect_timeout": 10,  # s
    "tcp_user_timeout": 30_000,  # ms until a peer that is gone is noticed
    "options": "-c lock_timeout=10s -c statement_timeout=60s",  # as long as for SQLite's lock; no statement takes 1 s
}

#: Our code's mistakes: they are not the database's failure and are reported as unexpected.
_MISTAKES = (peewee.IntegrityError, peewee.ProgrammingError, peewee.DataError, peewee.NotSupportedError)


_CHANGE = re.compile(r'(?:INSERT|UPDATE|DELETE)[A-Z ]*"(?P<table>\w+)"')


class _CountsWrites(peewee.Database):
    """Counts the statements that change rows, so that whoever waits for news knows when to look; notes their tables.

    ``work`` names what is being run, for the ``checkpoint`` around each commit.
    """

    writes = 0
    touched: set[str]
    work = ""
    checkpoint: Checkpoint = staticmethod(no_checkpoint)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.touched = set()

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        if change := _CHANGE.match(sql):
            self.writes += 1
            self.touched.add(change["table"])
        return super().execute_sql(sql, params)  # type: ignore[no-untyped-call]


class _Sqlite(_CountsWrites, peewee.SqliteDatabase):
    """Notices when its files were taken away: SQLite would go on writing to what no name leads to any more."""

    files: Mapping[Path, tuple[int, int]] = {}

    def note_files(self) -> None:
        """Remember which files these are. Raises OSError."""
        path = Path(self.database)
        self.files = {one: _identity(one) for one in (path, _wal(path)) if one.exists()}

    def look_at_files(self) -> None:
        """Begin a new WAL where it was removed. Raises DatabaseFailed where the database was removed or replaced."""
        path = Path(self.database)
        try:
            if _identity(path) != self.files.get(path):
                raise DatabaseFailed(reason="its file was replaced; restart the controller to go on with the new one")
        except OSError as err:
            raise DatabaseFailed(reason=f"its file cannot be reached: {err.strerror}") from err
        try:
            wal = _identity(_wal(path))
        except OSError:
            wal = None
        if wal != self.files.get(_wal(path)):
            self._replace_wal()

    def _replace_wal(self) -> None:
        """Write what is in a WAL that was removed to the database, and begin a new one.

        Raises DatabaseFailed while another process reads by the old one: what both share would lead into the new one.
        """
        if not self.is_closed():  # or a try before this could not connect again
            log.error("the database's WAL was removed; what is in it is written to the database, and a new one begins")
            busy, *_ = self.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()  # by the descriptor we still have
            if busy:
                raise DatabaseFailed(reason="its WAL was removed while another process reads it; end that process")
            self.close()
        self.connect()
        self.begin_wal()

    def begin_wal(self) -> None:
        """Have SQLite make its WAL, and note which files there are."""
        self.execute_sql("BEGIN IMMEDIATE")
        self.execute_sql("ROLLBACK")
        self.note_files()


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _identity(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino


class _Postgresql(_CountsWrites, peewee.PostgresqlDatabase):
    pass


class _TakenBack(Exception):
    """Ends a transaction that nothing shall come of."""


class Database:
    """One database, opened and migrated by ``open()``. Only one can be open in a process, since it binds the models."""

    def __init__(self, url: str, checkpoint: Checkpoint = no_checkpoint) -> None:
        self.url = url
        self.checkpoint = checkpoint
        self.version = 0
        #: Why it failed last, until it takes a change again.
        self.failing: str | None = None
        self._pulse = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        self._real: _CountsWrites | None = None

    async def open(self, *, dry_run: bool = False) -> list[str]:
        """Connect and apply the migrations that are missing; return their names. With ``dry_run`` none is applied.

        Raises DatabaseUnusable, DatabaseTooNew, DatabaseFailed; nothing is left open then.
        """
        if database.obj is not None:
            raise RuntimeError("another database is open in this process")
        self._real = _connectable(self.url)
        self._real.checkpoint = self.checkpoint
        database.initialize(self._real)
        try:
            await self.run(_connect, self._real, self.url)
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
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, lambda: self._work(loop, name_of(fn), lambda: fn(*args, **kwargs))
        )

    async def changed(self, since: int) -> int:
        """Wait until ``version`` is no longer ``since``; return it."""
        while self.version == since:
            await self._pulse.wait()
        return self.version

    def _work(self, loop: asyncio.AbstractEventLoop, name: str, work: Callable[[], T]) -> T:
        real = self._real
        if real is None:
            raise DatabaseFailed(reason="it is not open")
        before, real.work = real.writes, name
        try:
            if isinstance(real, _Sqlite) and real.files:
                real.look_at_files()
            result = work()
        except _MISTAKES:
            raise
        except DatabaseFailed as err:
            self.failing = str(err)
            raise
        except peewee.PeeweeException as err:
            self.failing = _reason(err)
            if isinstance(real, peewee.PostgresqlDatabase):
                _reconnect(real)
            raise DatabaseFailed(reason=_reason(err)) from err
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

    On SQLite the write lock is taken at the start: a transaction that reads first and locks later could find the
    rows changed and would have to be run again. Inside another ``write()`` it is a part of that one.
    """
    begin = ("IMMEDIATE",) if isinstance(database.obj, peewee.SqliteDatabase) else ()
    outermost = database.transaction_depth() == 0
    with database.atomic(*begin):
        yield
        if outermost:
            database.obj.checkpoint(f"before database {database.obj.work}")
    if outermost:
        database.obj.checkpoint(f"after database {database.obj.work}")


@contextlib.contextmanager
def read() -> Iterator[None]:
    """Several queries inside see one state of the database."""
    with database.atomic():
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


def _connectable(url: str) -> _CountsWrites:
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        # sqlite:////absolute/path and sqlite:///relative/path, as elsewhere; a path is not percent-decoded.
        return _Sqlite(rest[1:], pragmas=_SQLITE_PRAGMAS, autoconnect=False)
    if scheme == "postgresql" and urlsplit(url).path.strip("/"):
        return _Postgresql(url, autoconnect=False, prefer_psycopg3=True, **_POSTGRESQL_DEADLINES)
    raise DatabaseUnusable(url=_shown(url), reason="expected sqlite:////path/to/file or postgresql://host/name")


def _connect(real: peewee.Database, url: str) -> None:
    try:
        if isinstance(real, peewee.SqliteDatabase):
            _make_private(Path(real.database))
        real.connect()
        if isinstance(real, _Sqlite):
            real.begin_wal()
    except OSError as err:
        raise DatabaseUnusable(url=_shown(url), reason=str(err.strerror)) from err
    except peewee.PeeweeException as err:
        raise DatabaseUnusable(url=_shown(url), reason=_reason(err)) from err


def _make_private(path: Path) -> None:
    """Make sure that only we can read the file: it holds TPM states and agents' secrets. WAL files copy its mode."""
    with contextlib.suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def _reconnect(real: peewee.PostgresqlDatabase) -> None:
    """Begin with a fresh connection: after a failure this one may be dead, or stand in an aborted transaction."""
    try:
        real.close()
        real.connect()
    except peewee.PeeweeException as err:
        log.warning("the database cannot be reached again yet: %s", _reason(err))


def _reason(err: peewee.PeeweeException) -> str:
    """Say what failed without the statement or its values, which may be secret.

    The first error is the reason: where SQLite has rolled back by itself (disk full), peewee's own rollback fails
    on top of it.
    """
    cause: BaseException | None = err
    while cause is not None and (cause.__cause__ or cause.__context__) is not None:
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorname", None):
        return f"{cause} ({cause.sqlite_errorname})"
    if cause is not None and getattr(cause, "sqlstate", None):
        return f"PostgreSQL refused with {getattr(cause, 'sqlstate', '')}"
    return type(cause or err).__name__


def _shown(url: str) -> str:
    """Return the address without a password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}").geturl()
