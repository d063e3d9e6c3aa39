"""A server that hangs, is killed, or goes away: every call ends in time and says why, and work goes on afterwards."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from signal import SIGCONT, SIGKILL, SIGSTOP

import psycopg
import pytest

from agent.web.call import Reply
from agent.wire.readiness import Readiness
from controller.api.health import HealthRoutes
from controller.db import Database, write
from controller.errors import CommitUnconfirmed, DatabaseFailed, DatabaseUnusable
from controller.models import database
from controller.postgresql import _LOCK
from controller.store import events
from tests.controller.databases import OnServer, name_of
from tests.controller.postgresql.conftest import SHORT
from tests.controller.postgresql.proxy import Half, Proxy
from tests.lab.paths import PROJECT, PYTHON
from tests.lab.postgresql import Postgresql
from tests.visits import Struck

#: A controller whose network is cut, and mended: it prints why a call failed, and after how many seconds.
GONE = """
import asyncio, subprocess, sys, time
from controller.db import Database
from controller.errors import DatabaseFailed
from controller.postgresql import Deadlines
from controller.store import events

def link(way):
    subprocess.run(["ip", "link", "set", "lo", way], check=True)

async def main():
    async with Database(sys.argv[1], deadlines=Deadlines(connect_s=2, unacknowledged_s=1)) as db:
        link("down")
        begun = time.monotonic()
        try:
            await db.run(events.append, "lost")
        except DatabaseFailed as err:
            print(err)
        print(int(time.monotonic() - begun))
        link("up")
        await db.run(events.append, "kept")
        print([event.type for event in await db.run(events.read, 0, 9)])
asyncio.run(main())
"""
#: What each wait may last at most, on a machine that has other things to do.
IN_TIME_S = 30


@pytest.fixture(autouse=True)
def in_time() -> AsyncIterator[None]:  # type: ignore[misc]
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < IN_TIME_S


async def refusal(db: Database) -> str:
    """Return why an event is not taken."""
    with pytest.raises(DatabaseFailed) as caught:
        await db.run(events.append, "refused")
    return str(caught.value)


async def types(db: Database) -> list[str]:
    return [event.type for event in await db.run(events.read, 0, 99)]


async def backend(db: Database) -> int:
    """Return the process that serves us."""
    cursor = await db.run(database.execute_sql, "SELECT pg_backend_pid()")
    return int(cursor.fetchone()[0])


async def readiness(db: Database) -> tuple[bool, int]:
    """Return what ``/readyz`` says: whether all is well, and its status."""
    answer: Reply[Readiness] = await HealthRoutes(db, "1", patience_s=0.2).ready(None)  # type: ignore[arg-type]
    return answer.value.ready, answer.status or 200


@pytest.mark.case("F5")
async def test_a_lock_and_a_statement_that_take_too_long_are_refused_by_name_and_nothing_stays(hasty: Database) -> None:
    with psycopg.connect(hasty.url) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        assert "lock not available (55P03)" in await refusal(hasty)
    with pytest.raises(DatabaseFailed, match=r"query canceled \(57014\)"):
        await hasty.run(database.execute_sql, "SELECT pg_sleep(60)")
    await hasty.run(events.append, "kept")
    assert await types(hasty) == ["kept"]


@pytest.mark.case("F5")
async def test_a_server_process_that_is_stopped_holds_nobody_up_and_readiness_says_so_meanwhile(
    hasty: Database, postgresql: Postgresql
) -> None:
    await hasty.run(events.append, "before")
    stopped = await backend(hasty)
    postgresql.send(SIGSTOP, stopped)
    asked = asyncio.ensure_future(refusal(hasty))
    await asyncio.sleep(0)
    assert await readiness(hasty) == (False, 503)
    assert "does not answer" in await asked
    assert await readiness(hasty) == (True, 200)  # over another process
    await hasty.run(events.append, "after")
    postgresql.send(SIGCONT, stopped)
    assert await types(hasty) == ["before", "after"]


@pytest.mark.case("F5")
async def test_while_the_whole_server_stands_still_all_who_wait_are_answered_together(
    hasty: Database, postgresql: Postgresql
) -> None:
    postgresql.freeze()
    try:
        first = await asyncio.gather(*(refusal(hasty) for _ in range(5)))
        with pytest.raises(DatabaseUnusable, match="timeout"):
            await _open_elsewhere(hasty.url)
    finally:
        postgresql.thaw()
    assert "it has not answered for 1.2 s" in first[0]
    assert all("no connection was made in time" in one for one in first[1:])
    await hasty.run(events.append, "kept")
    assert (await types(hasty), hasty.failing) == (["kept"], None)


@pytest.mark.case("F5")
async def test_a_server_that_is_away_is_told_at_once_and_used_when_it_is_back(
    hasty: Database, postgresql: Postgresql
) -> None:
    await hasty.run(events.append, "before")

    def interrupted() -> None:
        with write():
            events.append("never")
            postgresql.kill()
            events.append("never")

    try:
        with pytest.raises(DatabaseFailed, match=r"was lost|admin shutdown"):
            await hasty.run(interrupted)
        assert "PostgreSQL cannot be reached" in await refusal(hasty)
        assert await readiness(hasty) == (False, 503)
    finally:
        postgresql.start()
    assert await readiness(hasty) == (True, 200)
    postgresql.stop()
    postgresql.start()
    await hasty.run(events.append, "after")  # nothing was under way: nobody hears of it
    assert await types(hasty) == ["before", "after"]


@pytest.mark.case("F5")
@pytest.mark.parametrize(("half", "kept"), [("order", []), ("answer", ["asked for"])])
async def test_a_commit_that_is_not_confirmed_is_told_as_that_and_the_next_question_finds_it_whole_or_not_at_all(
    databases: OnServer, proxy: Proxy, half: Half, kept: list[str], struck: Struck
) -> None:
    url = databases.server.url(name_of(databases.new()), port=proxy.port)
    async with Database(url, deadlines=SHORT) as db:
        for _ in range(5):
            proxy.cut_next(half)
            with pytest.raises(CommitUnconfirmed):
                await db.run(events.append, "asked for")
            found = await types(db)
            assert found == kept
            kept = [*found, *kept[:1]]
    struck(5)


@pytest.mark.case("F5")
async def test_nothing_is_read_before_a_commit_that_was_sent_to_a_stopped_process_is_decided(
    databases: OnServer, postgresql: Postgresql
) -> None:
    strikes: list[int] = []

    def stop(point: str) -> None:
        if strikes and point == "before database store.events.append":
            postgresql.send(SIGSTOP, strikes.pop())

    async with Database(databases.new(), stop, replace(SHORT, transaction_s=60)) as db:
        stopped = await backend(db)
        strikes.append(stopped)
        with pytest.raises(CommitUnconfirmed):
            await db.run(events.append, "late")
        with pytest.raises(DatabaseFailed, match="lock not available"):
            await types(db)
        postgresql.send(SIGCONT, stopped)
        assert await types(db) == ["late"]


@pytest.mark.case("F5")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_server_process_that_is_killed_about_a_commit_loses_nothing_that_was_told_as_done(
    databases: OnServer, postgresql: Postgresql, when: str
) -> None:
    victims: list[int] = []

    def kill(point: str) -> None:
        if victims and point == f"{when} database store.events.append":
            postgresql.send(SIGKILL, victims.pop())  # the server then starts anew by itself, all connections are cut

    async with Database(databases.new(), kill, SHORT) as db:
        victims.append(await backend(db))
        if when == "before":
            with pytest.raises(CommitUnconfirmed):
                await db.run(events.append, "struck")
        else:
            await db.run(events.append, "struck")
        async with asyncio.timeout(30):
            while await readiness(db) != (True, 200):
                await asyncio.sleep(0.02)
        assert await types(db) == ([] if when == "before" else ["struck"])


@pytest.mark.case("F5")
async def test_a_controller_that_sleeps_in_a_transaction_loses_it_and_holds_nobody_up(hasty: Database) -> None:
    def sleeps() -> None:
        with write():
            events.append("never")
            with psycopg.connect(hasty.url) as other:  # gets the lock when the server has ended us
                other.execute("SET lock_timeout = '10s'")
                other.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            events.append("never")

    with pytest.raises(DatabaseFailed, match=r"idle in transaction session timeout|was lost"):
        await hasty.run(sleeps)
    await hasty.run(events.append, "kept")
    assert await types(hasty) == ["kept"]


@pytest.mark.slow
@pytest.mark.case("F5")
def test_a_machine_that_is_gone_is_noticed_by_the_packets_that_nobody_acknowledges() -> None:
    with Postgresql(network=True) as server:
        url = server.url(server.create(), port=server.port)
        done = server.namespace.run([PYTHON, "-c", GONE, url], cwd=PROJECT, timeout_s=60)
    why, after_s, kept = done.stdout.splitlines()
    assert "the connection to PostgreSQL was lost" in why
    assert int(after_s) < 20  # not the 70 s after which we would cut it ourselves
    assert kept == "['kept']"


async def _open_elsewhere(url: str) -> None:
    """Open the database in this process, whose own is open: in place of it for a moment."""
    mine = database.obj
    database.initialize(None)
    try:
        await Database(url, deadlines=SHORT).open()
    finally:
        database.initialize(mine)
