"""What ``write()`` and ``read()`` promise holds beside other connections (docs/decisions/0026)."""

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import peewee
import psycopg
import pytest

from controller.db import Database, read, write
from controller.errors import DatabaseFailed
from controller.models import Event, database
from controller.postgresql import _LOCK
from controller.store import events
from tests.lab.postgresql import Postgresql

ROOT = Path(__file__).parents[3]
ROUNDS = 40
COUNTER = """
import asyncio, sys
from controller.db import Database
from tests.controller.postgresql.test_concurrency import ROUNDS, raise_by_one

async def main():
    async with Database(sys.argv[1]) as db:
        print(flush=True)
        sys.stdin.readline()
        for _ in range(ROUNDS):
            await db.run(raise_by_one)
asyncio.run(main())
"""


def raise_by_one() -> None:
    """Read a count, and write one more: lost where somebody else does the same in between."""
    with write():
        row: Any = Event.select(Event.data).first()
        Event.update(data={"count": row.data["count"] + 1}).execute()


async def test_what_was_read_in_a_write_stays_true_beside_another_process(postgresql: Postgresql) -> None:
    url = postgresql.url(postgresql.create())
    async with Database(url) as db:
        await db.run(events.append, "counter", data={"count": 0})
        command = [sys.executable, "-c", COUNTER, url]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)  # noqa: ASYNC220
        assert other.stdout is not None
        await asyncio.to_thread(other.stdout.readline)
        _, *_ = await asyncio.gather(
            asyncio.to_thread(other.communicate, b"begin\n"), *(db.run(raise_by_one) for _ in range(ROUNDS))
        )
        assert other.returncode == 0
        row: Any = await db.run(lambda: Event.select(Event.data).first())
    assert row.data == {"count": 2 * ROUNDS}


async def test_a_read_sees_one_state_whatever_is_committed_meanwhile(db: Database) -> None:
    def look() -> tuple[int, int]:
        with read():
            before = events.newest()
            with psycopg.connect(database.obj.url) as other:
                other.execute("INSERT INTO event (at, type, data) VALUES ('now', 'other', 'null')")
            return before, events.newest()

    before, after = await db.run(look)
    assert before == after == 0
    assert await db.run(events.newest) == 1


async def test_a_write_waits_before_it_reads(hasty: Database) -> None:
    """It sees what the one before it has committed, not what was there when it came."""
    await hasty.run(events.append, "counter", data={"count": 0})
    with psycopg.connect(hasty.url) as other:
        other.execute("BEGIN")
        other.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        other.execute("UPDATE event SET data = %s", ('{"count": 41}',))
        raising = asyncio.ensure_future(hasty.run(raise_by_one))
        while not other.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchall():
            await asyncio.sleep(0)
        other.execute("COMMIT")
    await raising
    row: Any = await hasty.run(lambda: Event.select(Event.data).first())
    assert row.data == {"count": 42}


async def test_a_lone_change_takes_its_turn_too_and_a_read_may_change_nothing(hasty: Database) -> None:
    def in_a_read() -> None:
        with read():
            Event.create(type="test")

    with pytest.raises(DatabaseFailed, match="read only sql transaction"):
        await hasty.run(in_a_read)
    with psycopg.connect(hasty.url) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        with pytest.raises(DatabaseFailed, match=r"lock not available \(55P03\)"):
            await hasty.run(Event.create, type="test")
    assert await hasty.run(events.newest) == 0


async def test_a_transaction_in_which_a_statement_failed_is_never_told_as_committed(db: Database) -> None:
    """PostgreSQL answers its COMMIT with ROLLBACK, and no error."""

    def work() -> None:
        with write():
            events.append("first")
            with contextlib.suppress(peewee.DataError):
                database.execute_sql("SELECT 1/0")

    with pytest.raises(DatabaseFailed):
        await db.run(work)
    assert await db.run(events.newest) == 0
