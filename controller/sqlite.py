"""SQLite: one private file and its WAL, which somebody may take away under us."""

import contextlib
import logging
import sqlite3
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import peewee

from controller.backend import Backend, causes
from controller.errors import DatabaseFailed

log = logging.getLogger("coldframe.database")

_PRAGMAS = {
    "journal_mode": "wal",  # readers in other processes (a backup, the token command) do not stop us
    "synchronous": "full",  # an answer that was given survives the power cut that follows it
    "foreign_keys": 1,
    "busy_timeout": 10_000,  # ms that we wait for another process: far more than its longest transaction
    "secure_delete": 1,  # deleted TPM states are overwritten, not left in free pages
}


class Sqlite(Backend, peewee.SqliteDatabase):
    """Notices when its files were taken away: SQLite would go on writing to what no name leads to any more."""

    files: Mapping[Path, tuple[int, int]] = {}

    def __init__(self, path: str) -> None:
        super().__init__(path, pragmas=_PRAGMAS, autoconnect=False)

    def open(self) -> None:
        """Connect, to a private file. Raises OSError, peewee's errors."""
        _make_private(Path(self.database))
        self.connect()
        self._begin_wal()

    def begin_work(self, asked_at_s: float) -> None:
        """Begin a new WAL where it was removed. Raises DatabaseFailed where the database was removed or replaced."""
        del asked_at_s
        if not self.files:
            return
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

    def writing(self) -> AbstractContextManager[object]:
        """A transaction that has the write lock from the start: one that reads first and locks later could find the
        rows changed and would have to be run again.
        """
        return self.atomic("IMMEDIATE")

    def reading(self) -> AbstractContextManager[object]:
        """A transaction that sees one state."""
        return self.atomic()

    def failed(self, err: peewee.PeeweeException) -> str:
        """Say why work failed."""
        first = causes(err)[0]
        if isinstance(first, sqlite3.Error) and getattr(first, "sqlite_errorname", None):
            return f"{first} ({first.sqlite_errorname})"
        return type(first).__name__

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
        self._begin_wal()

    def _begin_wal(self) -> None:
        """Have SQLite make its WAL, and remember which files there are. Raises OSError."""
        self.execute_sql("BEGIN IMMEDIATE")
        self.execute_sql("ROLLBACK")
        path = Path(self.database)
        self.files = {one: _identity(one) for one in (path, _wal(path)) if one.exists()}


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _identity(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino


def _make_private(path: Path) -> None:
    """Make sure that only we can read the file: it holds TPM states and agents' secrets. WAL files copy its mode."""
    with contextlib.suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
