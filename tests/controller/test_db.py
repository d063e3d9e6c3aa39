import asyncio
import contextlib
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import peewee
import pytest
from playhouse.schema_diff import diff_models

from controller.db import Database, write
from controller.errors import DatabaseFailed, DatabaseTooNew, DatabaseUnusable
from controller.models import MODELS, Content, Event, database
from controller.store import events

READER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN")
db.execute("SELECT * FROM event").fetchall()
print(flush=True)
sys.stdin.readline()
"""


def begin_to_read(path: Path) -> "subprocess.Popen[bytes]":
    reader = subprocess.Popen([sys.executable, "-c", READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdout is not None
    reader.stdout.readline()
    return reader


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def schema(path: Path) -> dict[str, Any]:
    """Return columns (name, type, not null, primary key), foreign keys and indexes of each table."""
    shape: dict[str, Any] = {}
    with contextlib.closing(sqlite3.connect(path)) as raw:
        tables = [row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in sorted(set(tables) - {"sqlite_sequence", "schema_migration"}):
            columns = [
                (name, type_, not_null, key)
                for _, name, type_, not_null, _, key in raw.execute(f"PRAGMA table_info('{table}')")
            ]
            keys = sorted(row[2:] for row in raw.execute(f"PRAGMA foreign_key_list('{table}')"))
            indexes = set()
            for _, name, unique, origin, partial in raw.execute(f"PRAGMA index_list('{table}')"):
                named = tuple(row[2] for row in raw.execute(f"PRAGMA index_info('{name}')"))
                indexes.add((named, unique, partial, origin == "pk"))
            shape[table] = (sorted(columns), keys, indexes)
    return shape


async def test_migrations_together_make_what_the_models_describe(tmp_path: Path) -> None:
    async with Database(url(tmp_path / "migrated.db")) as db:
        assert str(await db.run(lambda: diff_models(database.obj, MODELS))) == ""
    plain = peewee.SqliteDatabase(str(tmp_path / "plain.db"))
    with plain.bind_ctx(MODELS), plain.connection_context():
        plain.create_tables(MODELS)
    assert schema(tmp_path / "migrated.db") == schema(tmp_path / "plain.db")


async def test_a_migration_is_applied_once(tmp_path: Path) -> None:
    db = Database(url(tmp_path / "c.db"))
    assert await db.open() == [
        "0001_records",
        "0002_hidden_bases",
        "0003_clones",
        "0004_retention",
        "0008_identity",
        "0009_counts",
        "0010_snapshot_order",
    ]
    await db.close()
    db = Database(url(tmp_path / "c.db"))
    assert await db.open() == []
    await db.close()


async def test_a_database_from_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    async with Database(url(tmp_path / "c.db")) as db:
        insert = "INSERT INTO schema_migration (name, applied) VALUES ('0999_later', '2030-01-01')"
        await db.run(lambda: database.execute_sql(insert))
    before = schema(tmp_path / "c.db")
    with pytest.raises(DatabaseTooNew, match="0999_later"):
        await Database(url(tmp_path / "c.db")).open()
    assert schema(tmp_path / "c.db") == before
    assert database.obj is None


@pytest.mark.case("X5")
async def test_database_files_are_private_even_where_the_file_was_open_to_all(tmp_path: Path) -> None:
    (tmp_path / "c.db").touch(mode=0o644)
    async with Database(url(tmp_path / "c.db")) as db:
        await db.run(events.append, "test")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"c.db": 0o600, "c.db-wal": 0o600, "c.db-shm": 0o600}


@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
async def test_sqlite_is_durable_checks_foreign_keys_and_overwrites_what_is_deleted(db: Database) -> None:
    def pragmas() -> dict[str, Any]:
        names = ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        return {name: database.execute_sql(f"PRAGMA {name}").fetchone()[0] for name in names}

    assert await db.run(pragmas) == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}


@pytest.mark.parametrize("bad", ["c.db", "sqlite://", "mysql://host/name", "postgresql://host", ""])
async def test_an_address_that_is_none_is_refused(bad: str) -> None:
    with pytest.raises(DatabaseUnusable):
        await Database(bad).open()
    assert database.obj is None


async def test_a_missing_directory_and_a_file_that_is_no_database_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnusable, match="No such file"):
        await Database(url(tmp_path / "missing" / "c.db")).open()
    (tmp_path / "text.db").write_text("this is no database" * 100)
    with pytest.raises(DatabaseFailed, match="not a database"):
        await Database(url(tmp_path / "text.db")).open()


@pytest.mark.case("F5")
@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
async def test_a_database_that_was_replaced_or_removed_takes_no_change_and_goes_on_when_it_is_back(
    db: Database, tmp_path: Path
) -> None:
    path, aside = tmp_path / "controller.db", tmp_path / "aside"
    path.rename(aside)
    with pytest.raises(DatabaseFailed, match="cannot be reached: No such file"):
        await db.run(events.append, "lost")
    path.write_text("garbage")
    with pytest.raises(DatabaseFailed, match="was replaced; restart"):
        await db.run(events.append, "lost")
    assert "was replaced" in str(db.failing)
    aside.rename(path)
    await db.run(events.append, "kept")
    assert db.failing is None
    assert [event.type for event in await db.run(events.read, 0, 9)] == ["kept"]


@pytest.mark.case("F5")
async def test_what_was_committed_survives_that_the_wal_was_removed_and_the_process_then_died(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with Database(url(path)) as db:
        await db.run(events.append, "before")
        (tmp_path / "c.db-wal").unlink()
        await db.run(events.append, "after")
        copy = tmp_path / "as-after-a-crash.db"
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    async with Database(url(copy)) as db:
        assert [event.type for event in await db.run(events.read, 0, 9)] == ["before", "after"]


@pytest.mark.case("F5")
async def test_a_wal_that_was_removed_under_a_reader_is_replaced_when_the_reader_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with Database(url(path)) as db:
        await db.run(events.append, "before")
        await db.run(database.execute_sql, "PRAGMA busy_timeout = 10")
        reader = begin_to_read(path)
        await db.run(events.append, "while it reads")
        (tmp_path / "c.db-wal").unlink()
        for _ in range(2):
            with pytest.raises(DatabaseFailed, match="another process reads it"):
                await db.run(events.append, "refused")
        reader.communicate(b"end\n")
        await db.run(events.append, "after")
        kept = [event.type for event in await db.run(events.read, 0, 9)]
    assert kept == ["before", "while it reads", "after"]


@pytest.mark.case("F5")
async def test_a_database_that_could_not_be_opened_again_is_opened_at_the_next_try(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with Database(url(path)) as db:
        await db.run(events.append, "before")
        (tmp_path / "c.db-wal").unlink()
        (tmp_path / "c.db-wal").mkdir()
        with pytest.raises(DatabaseFailed):
            await db.run(events.append, "refused")
        (tmp_path / "c.db-wal").rmdir()
        await db.run(events.append, "after")
        assert [event.type for event in await db.run(events.read, 0, 9)] == ["before", "after"]


@pytest.mark.case("F5")
def test_a_database_on_a_read_only_file_system_is_refused_by_name_and_used_when_that_is_writable(
    tmp_path: Path,
) -> None:
    """In a mount namespace of its own: the directory is a small file system that is made read-only and writable."""
    code = f"""
import asyncio, subprocess
from controller.db import Database, probe
from controller.errors import DatabaseFailed, DatabaseUnusable
from controller.store import events

def remount(how):
    subprocess.run(["mount", "-o", "remount," + how, {str(tmp_path)!r}], check=True)

async def main():
    async with Database("sqlite:///{tmp_path}/c.db") as db:
        await db.run(events.append, "one")
    remount("ro")
    try:
        async with Database("sqlite:///{tmp_path}/c.db") as db:
            await db.run(events.append, "two")
    except (DatabaseFailed, DatabaseUnusable) as err:
        print(err)
    remount("rw")
    async with Database("sqlite:///{tmp_path}/c.db") as db:
        await db.run(probe)
        print(len(await db.run(events.read, 0, 9)))
asyncio.run(main())
"""
    shell = f'mount -t tmpfs -o size=8m none {tmp_path} && exec {sys.executable} -c "$0"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", shell, code], capture_output=True, text=True, check=True)
    refusal, count = done.stdout.splitlines()
    assert "read" in refusal.lower()
    assert count == "1"


async def test_a_password_in_the_address_is_not_shown() -> None:
    with pytest.raises(DatabaseUnusable) as caught:
        await Database("mysql://coldframe:hunter2@db/name").open()
    assert "hunter2" not in str(caught.value)


async def test_a_query_outside_the_databases_thread_fails_at_once(db: Database) -> None:
    with pytest.raises(peewee.InterfaceError):
        Event.select().count()


async def test_a_second_database_in_one_process_is_refused(db: Database, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="another database"):
        await Database(url(tmp_path / "other.db")).open()
    assert await db.run(events.newest) == 0


async def test_an_error_in_a_transaction_undoes_all_of_it(db: Database) -> None:
    def work() -> None:
        with write():
            events.append("first")
            with write():
                events.append("second")
            raise LookupError

    with pytest.raises(LookupError):
        await db.run(work)
    assert await db.run(events.newest) == 0


@pytest.mark.case("F5")
@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
async def test_a_database_that_cannot_write_says_why_and_undoes_what_was_begun(db: Database) -> None:
    def fill() -> None:
        database.execute_sql("PRAGMA max_page_count = 1")
        with write():
            events.append("first")
            Content.create(sha256="a", size_bytes=1, codec="zstd", data=b"\0" * 10_000_000)

    with pytest.raises(DatabaseFailed, match=r"full \(SQLITE_FULL\)"):
        await db.run(fill)
    await db.run(lambda: database.execute_sql("PRAGMA max_page_count = 1000000"))
    assert await db.run(events.newest) == 0
    assert await db.run(events.append, "after") == 1


@pytest.mark.case("X5")
@pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
async def test_a_failure_tells_nothing_of_the_values_that_were_to_be_stored(db: Database) -> None:
    with pytest.raises(DatabaseFailed) as caught:
        await db.run(lambda: database.execute_sql("INSERT INTO nowhere VALUES (?)", ("hunter2",)))
    assert "hunter2" not in str(caught.value)
    assert "INSERT" not in str(caught.value)


async def test_changed_wakes_whoever_waits_after_a_write_and_not_after_a_read(db: Database) -> None:
    version = db.version
    waiting = asyncio.ensure_future(db.changed(version))
    await db.run(events.newest)
    await asyncio.sleep(0)
    assert not waiting.done()
    await db.run(events.append, "test")
    assert await asyncio.wait_for(waiting, 5) > version


async def test_work_that_was_begun_goes_on_when_its_caller_is_cancelled(db: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(10)
        events.append("test")

    task = asyncio.ensure_future(db.run(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert await db.run(events.newest) == 1


async def test_a_commit_is_a_point_named_after_its_work_and_what_dies_before_it_left_nothing(tmp_path: Path) -> None:
    heard: list[str] = []

    def checkpoint(name: str) -> None:
        heard.append(name)
        if heard.count("before database store.events.append") == 2 and name.startswith("before"):
            raise KeyError(name)

    async with Database(url(tmp_path / "points.db"), checkpoint) as db:
        assert heard == ["before database db.migrate", "after database db.migrate"]
        await db.run(events.append, "vm.added")
        with pytest.raises(KeyError):
            await db.run(events.append, "vm.gone")
        assert heard[2:] == [f"{when} database store.events.append" for when in ("before", "after", "before")]
        assert [event.type for event in await db.run(events.read, 0, 10)] == ["vm.added"]


async def test_a_lock_that_another_process_never_gives_back_is_an_error_with_a_deadline(tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path}/c.db") as db:
        await db.run(lambda: database.execute_sql("PRAGMA busy_timeout = 50"))  # in place of 10 s
        with contextlib.closing(sqlite3.connect(tmp_path / "c.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseFailed, match="locked"):
                await db.run(events.trim, 1)
            other.execute("ROLLBACK")
        await db.run(events.trim, 1)
