"""What ``controller.db`` asks of a database; SQLite and PostgreSQL answer in a module each."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

import peewee

from agent.web.checkpoint import Checkpoint, no_checkpoint

#: A statement as peewee writes it that changes rows.
CHANGE = re.compile(r'(?:INSERT|UPDATE|DELETE)[A-Z ]*"(?P<table>\w+)"')

MISTAKES = (peewee.IntegrityError, peewee.ProgrammingError, peewee.DataError, peewee.NotSupportedError)


class Backend(peewee.Database, ABC):
    """Counts the statements that change rows, so that whoever waits for news knows when to look; notes their tables.

    ``work`` names what is being run, for the ``checkpoint`` around each commit. Used on the database's thread only.
    """

    writes = 0
    touched: set[str]
    work = ""
    checkpoint: Checkpoint = staticmethod(no_checkpoint)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.touched = set()

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        """Run one statement."""
        if change := CHANGE.match(sql):
            self.writes += 1
            self.touched.add(change["table"])
        return super().execute_sql(sql, params)  # type: ignore[no-untyped-call]

    @abstractmethod
    def open(self) -> None:
        """Connect for the first time. Raises OSError, peewee's errors."""

    def unopened(self, err: peewee.PeeweeException) -> str:
        """Say, to whoever starts the program, why ``open`` failed."""
        return self.failed(err)

    @abstractmethod
    def begin_work(self, asked_at_s: float) -> None:
        """Make sure that work can begin which was asked for at that moment of the monotonic clock.

        Raises DatabaseFailed, peewee's errors.
        """

    @abstractmethod
    def writing(self) -> AbstractContextManager[object]:
        """A transaction beside which nobody else writes, from before its first statement on."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[object]:
        """A transaction that sees one state."""

    def is_mistake(self, err: peewee.PeeweeException) -> bool:
        """Tell whether it is our code's mistake: not the database's failure, and reported as unexpected."""
        return isinstance(err, MISTAKES)

    @abstractmethod
    def failed(self, err: peewee.PeeweeException) -> str:
        """Say why work failed, without the statement or its values, which may be secret; be ready for the next."""


def causes(err: BaseException) -> list[BaseException]:
    """Return what an error came of, first error first.

    The first one is the reason: where a database has rolled back by itself, peewee's own rollback fails on top of it.
    """
    found: list[BaseException] = [err]
    while (before := found[-1].__cause__ or found[-1].__context__) is not None and before not in found:
        found.append(before)
    return found[::-1]
