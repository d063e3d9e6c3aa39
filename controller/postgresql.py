"""PostgreSQL: one connection, which ends in time whatever becomes of the server, and is made anew when it is needed.

What SQLite gives by itself is asked for here. Writers take turns by an advisory lock, taken before anything is read
(docs/decisions/0026). A server that is stopped in the middle of an answer holds nobody up for longer than we wait.
"""

import logging
import select
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import peewee
import psycopg
from psycopg import conninfo
from psycopg.pq import TransactionStatus

from agent.web.log import kv
from controller.backend import CHANGE, Backend, causes
from controller.errors import CommitUnconfirmed, DatabaseFailed

log = logging.getLogger("coldframe.database")

#: The lock of whoever writes. One number for all: each database of a server has advisory locks of its own.
_LOCK = int.from_bytes(b"coldfram")
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
#: Not REPEATABLE READ: that would see the state of before it waited for the lock.
_WRITE = f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT pg_advisory_xact_lock({_LOCK})"
#: What the connection before this one had sent has happened or never will once this was had: only then may we read.
_BARRIER = f"BEGIN; SELECT pg_advisory_xact_lock({_LOCK}); COMMIT"
#: An answer that was given survives the power cut that follows it, whatever the server's default is.
_DURABLE = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """When waiting for PostgreSQL ends.

    ``connect_s``: for each address; libpq counts whole seconds, at least 2. ``lock_s``: as long as for SQLite's.
    ``statement_s``: none takes one second. ``transaction_s``: a transaction whose client says nothing, because it is
    stopped or its machine is gone, is ended by the server, with its lock. ``answer_s``: after which we cut a connection
    that brings nothing; longer than ``statement_s``, so that a server which lives says itself what was wrong.
    ``unacknowledged_s``: until a machine that is gone is noticed.
    """

    connect_s: int = 10
    lock_s: float = 10
    statement_s: float = 60
    transaction_s: float = 30
    answer_s: float = 70
    unacknowledged_s: float = 30

    def parameters(self, url: str) -> dict[str, Any]:
        """Return the connection's parameters; what the address says itself comes last. Raises psycopg's errors."""
        asked = conninfo.conninfo_to_dict(url)
        timeouts = {
            "lock_timeout": self.lock_s,
            "statement_timeout": self.statement_s,
            "idle_in_transaction_session_timeout": self.transaction_s,
        }
        options = [f"-c {name}={int(seconds * 1000)}" for name, seconds in timeouts.items()]
        return {
            "connect_timeout": self.connect_s,
            "tcp_user_timeout": int(self.unacknowledged_s * 1000),
            "application_name": "coldframe-controller",
            **asked,
            "client_encoding": "utf-8",
            "options": " ".join([*options, str(asked.get("options") or "")]).strip(),
        }


class NoAnswer(psycopg.OperationalError):
    """The server is connected and says nothing."""


class _Connection(psycopg.Connection[Any]):
    """A connection that is cut when the server brings nothing for ``answer_s``.

    The server's own ``statement_timeout`` does not help where its process is stopped, nor ``tcp_user_timeout``
    where its kernel still acknowledges all we send.
    """

    answer_s = Deadlines.answer_s

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        return super().wait(self._bounded(gen), *args, **kwargs)

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Pass everything on between psycopg and its generator; it is told every 0.1 s that nothing came."""
        heard_at_s = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    heard_at_s = time.monotonic()
                elif time.monotonic() - heard_at_s > self.answer_s:
                    self.pgconn.finish()
                    raise NoAnswer(f"it has not answered for {self.answer_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


class _Adapter(peewee.Psycopg3Adapter):
    def connect(self, db: "Postgresql", **_: Any) -> _Connection:
        return db.new_connection()


class Postgresql(Backend, peewee.PostgresqlDatabase):
    """One database of a server; connected by ``open()`` and again by ``begin_work()``."""

    psycopg3_adapter = _Adapter

    def __init__(self, url: str, deadlines: Deadlines) -> None:
        super().__init__(url, autoconnect=False, prefer_psycopg3=True)
        self.url, self.deadlines = url, deadlines
        self._gave_up_at_s = 0.0
        self._gave_up_because = ""

    def open(self) -> None:
        """Connect for the first time. Raises peewee's errors."""
        self.connect()

    def unopened(self, err: peewee.PeeweeException) -> str:
        """Say why that failed, with the driver's own words."""
        return _told(err)

    def new_connection(self) -> _Connection:
        """Connect, and wait until nothing is under way any more. Raises psycopg's errors."""
        connection = _Connection.connect(**self.deadlines.parameters(self.url), autocommit=True, prepare_threshold=None)
        connection.answer_s = self.deadlines.answer_s
        try:
            _require_utf8(connection)
            connection.execute(_BARRIER)
            connection.execute(_DURABLE)
        except BaseException:
            connection.close()
            raise
        return connection

    def begin_work(self, asked_at_s: float) -> None:
        """Connect where there is no connection, or one that the server has ended while nothing was asked.

        Who was waiting while that was tried in vain gets the same answer: each in turn would wait as long again.
        """
        if not self.is_closed() and self._was_ended():
            self.close()
        if not self.is_closed():
            return
        if asked_at_s <= self._gave_up_at_s:
            raise DatabaseFailed(reason=self._gave_up_because)
        try:
            self.connect()
        except peewee.PeeweeException as err:
            log.warning(kv("database-unreachable", detail=_told(err)))
            self._gave_up_at_s, self._gave_up_because = time.monotonic(), _reason(err, "PostgreSQL cannot be reached")
            raise DatabaseFailed(reason=self._gave_up_because) from err

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        """Run one statement. A change that is no part of a transaction takes its turn as one does.

        PostgreSQL refuses even to compare with NUL: hosts may tell of it in a text, and callers ask for it.
        """
        params = [one.replace("\0", "\ufffd") if isinstance(one, str) else one for one in params or ()]
        if self.transaction_depth() == 0 and CHANGE.match(sql):
            with self.writing():
                return super().execute_sql(sql, params)
        return super().execute_sql(sql, params)

    def begin(self, isolation_level: str | None = None) -> None:
        """Begin a transaction that writes, or by other statements. Raises peewee's errors; none is begun then."""
        try:
            self.execute_sql(isolation_level or _WRITE)
        except peewee.PeeweeException:
            self.rollback()
            raise

    def commit(self) -> None:
        """Commit. Raises CommitUnconfirmed where the connection was lost meanwhile."""
        try:
            cursor = self.execute_sql("COMMIT")
        except peewee.PeeweeException as err:
            if self._is_lost():
                raise CommitUnconfirmed from err
            raise
        if cursor.statusmessage != "COMMIT":  # it takes back a transaction in which a statement had failed, and says so
            raise peewee.InternalError("the transaction had failed before it was committed")

    def rollback(self) -> None:
        """Take the transaction back. Where the connection is lost the server does so by itself."""
        if not self._is_lost():
            super().rollback()

    def writing(self) -> AbstractContextManager[object]:
        """A transaction that has the writers' lock from the start."""
        return self.atomic(_WRITE)

    def reading(self) -> AbstractContextManager[object]:
        """A transaction that sees one state and may change nothing."""
        return self.atomic(_READ)

    def is_mistake(self, err: peewee.PeeweeException) -> bool:
        """Tell whether it is our code's mistake. Tables or rights that are not there are the database's failure."""
        told_by_server = any(getattr(cause, "sqlstate", None) for cause in causes(err))
        return super().is_mistake(err) and not (isinstance(err, peewee.ProgrammingError) and told_by_server)

    def failed(self, err: peewee.PeeweeException) -> str:
        """Say why work failed, and let go of a connection on which no more can be done."""
        if not self.is_closed() and (self._is_lost() or self._status() != TransactionStatus.IDLE):
            self.close()
        return _reason(err, "the connection to PostgreSQL was lost")

    @property
    def _connection(self) -> _Connection:
        connection: _Connection = self.connection()  # type: ignore[no-untyped-call]
        return connection

    def _is_lost(self) -> bool:
        return self.is_closed() or self._connection.closed

    def _was_ended(self) -> bool:
        """Whether the server has something to say that nobody asked for: that it ends the connection."""
        if self._is_lost():
            return True
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _status(self) -> TransactionStatus:
        return TransactionStatus(self._connection.pgconn.transaction_status)


def _require_utf8(connection: _Connection) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise psycopg.OperationalError(f"its encoding is {encoding}, and must be UTF8")


def _reason(err: BaseException, otherwise: str) -> str:
    """Say what went wrong in words that hold nothing of the statement, its values or the server's address."""
    for cause in causes(err):
        if isinstance(cause, NoAnswer):
            return f"PostgreSQL does not answer: {cause}"
        if isinstance(cause, psycopg.errors.ConnectionTimeout):
            return "PostgreSQL does not answer: no connection was made in time"
        if isinstance(cause, psycopg.Error) and cause.sqlstate is not None:
            return f"PostgreSQL refused: {_words(type(cause).__name__)} ({cause.sqlstate})"
    return otherwise


def _told(err: BaseException) -> str:
    """Return what the driver tells about a connection, for the operator's eyes: it names addresses, no password."""
    told = next((cause for cause in reversed(causes(err)) if isinstance(cause, psycopg.Error)), err)
    if isinstance(told, psycopg.ProgrammingError) and told.sqlstate is None:
        return "the address cannot be read"  # what cannot be read may be a password with a sign that needs %XX
    return "; ".join(str(told).split("\n"))


def _words(name: str) -> str:
    """``LockNotAvailable`` is "lock not available"."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
