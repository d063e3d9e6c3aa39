"""A database of PostgreSQL is made, found as it was left, and refused by name."""

import subprocess
import sys
from pathlib import Path
from shutil import copyfile

import psycopg
import pytest
from playhouse.schema_diff import diff_models

from controller.commands import run
from controller.db import MIGRATIONS, Database
from controller.errors import DatabaseFailed, DatabaseTooNew, DatabaseUnusable, HostNotFound
from controller.models import MODELS, database
from controller.postgresql import _LOCK
from controller.store import events, hosts
from tests.lab.postgresql import Postgresql
from tests.lab.waiting import wait_until

ROOT = Path(__file__).parents[3]
ALL = sorted(path.stem for path in MIGRATIONS.glob("[0-9]*.py"))

#: Copies of host files, and snapshots: taken by a clock that was ahead, two of one date, one without a disk.
OLDER = """
INSERT INTO vm VALUES ('v', 'win11', NULL, NULL, 'shut-off', 'uefi', NULL, false, '[]', NULL, '', NULL);
INSERT INTO host_file (vm_id, host, type, synced_at, dirty_since) VALUES ('v', 'kvm1', 'nvram', '2026-1', '2026-2'),
    ('v', 'kvm2', 'nvram', '2026-3', NULL), ('v', 'kvm3', 'nvram', NULL, '2026-3');
INSERT INTO snapshot (uuid, vm_id, name, description, labels, current, state, automatic, protected, ungrouped,
    host_files_state, expected, missing, excluded, domain_xml, firmware, created_at)
SELECT uuid, 'v', uuid, '', '{}', false, 'ready', false, false, false, 'none', '[]', '[]', '[]', '', '[]', created_at
FROM (VALUES ('s-b', '2026-2'), ('s-a', '2026-2'), ('s-ahead', '2036-1'), ('s-without-disks', '2026-1'))
    AS made (uuid, created_at);
INSERT INTO volume_snapshot (snapshot_id, vm_id, target, host, path, format, virtual_size_bytes, allocated_bytes,
    fingerprint, hidden, merged, altered)
SELECT uuid, 'v', 'vda', 'kvm1', uuid, 'qcow2', 1, 1, '', false, false, false
FROM (VALUES ('s-ahead'), ('s-a'), ('s-b')) AS made (uuid)
"""


@pytest.fixture
def url(postgresql: Postgresql) -> str:
    """The address of a database that holds nothing at all."""
    return postgresql.url(postgresql.create())


async def test_migrations_together_make_what_the_models_describe_each_applied_once(url: str) -> None:
    db = Database(url)
    assert await db.open() == ALL
    assert str(await db.run(lambda: diff_models(database.obj, MODELS))) == ""
    await db.close()
    db = Database(url)
    assert await db.open() == []
    await db.close()


async def test_what_an_older_controller_recorded_is_numbered_as_it_came(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = [path for path in sorted(MIGRATIONS.glob("[0-9]*.py")) if path.stem < "0009"]
    for path in older:
        copyfile(path, tmp_path / path.name)
    with monkeypatch.context() as before:
        before.setattr("controller.db.MIGRATIONS", tmp_path)
        async with Database(url):
            pass
    with psycopg.connect(url, autocommit=True) as raw:
        raw.execute(OLDER)
        async with Database(url):
            pass
        copies = raw.execute("SELECT synced_seq, dirty_seq FROM host_file ORDER BY host").fetchall()
        taken = raw.execute("SELECT uuid FROM snapshot ORDER BY seq").fetchall()
        numbers = raw.execute("SELECT count(DISTINCT seq), min(seq), max(seq) FROM snapshot").fetchone()
    assert copies == [(1, 2), (3, 0), (0, 3)]
    assert [uuid for (uuid,) in taken] == ["s-ahead", "s-a", "s-b", "s-without-disks"]
    assert numbers == (4, 1, 4)


async def test_a_migration_that_fails_leaves_nothing_of_those_before_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, body in enumerate(("CREATE TABLE one (a TEXT)", "CREATE TABLE one (a TEXT)")):
        (tmp_path / f"000{number}_x.py").write_text(f"def up(migrator, db):\n    db.execute_sql('{body}')\n")
    monkeypatch.setattr("controller.db.MIGRATIONS", tmp_path)
    with pytest.raises(DatabaseFailed, match="duplicate table"):
        await Database(url).open()
    with psycopg.connect(url) as raw:
        assert raw.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


async def test_a_database_from_a_newer_version_is_refused(url: str) -> None:
    async with Database(url):
        pass
    with psycopg.connect(url) as raw:
        raw.execute("INSERT INTO schema_migration (name, applied) VALUES ('0999_later', '2030-01-01')")
    with pytest.raises(DatabaseTooNew, match="0999_later"):
        await Database(url).open()
    assert database.obj is None


def test_two_processes_that_migrate_at_once_apply_each_migration_once(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as raw:
        raw.execute(f"SELECT pg_advisory_lock({_LOCK})")
        command = [sys.executable, "-m", "controller", "migrate", "--database", url]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
        waiting = "SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_until("two that wait", lambda: raw.execute(waiting).fetchone() == (True,), 30)
        raw.execute(f"SELECT pg_advisory_unlock({_LOCK})")
        told = sorted(one.communicate(timeout=60)[0] for one in both)
    assert told == [f"Applied: {', '.join(ALL)}\n", "The database is up to date\n"]


def test_the_commands_work_on_it_and_a_dry_run_leaves_no_trace(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    def do(*words: str) -> str:
        assert run([*words, "--database", url]) == 0
        return capsys.readouterr().out

    create = ("token", "create", "--role", "admin", "--name", "first")
    assert do("check") == "The settings can be used\n"
    assert do("migrate", "--dry-run").startswith("Would apply: 0001_records")
    assert "Would make" in do(*create, "--dry-run")
    with psycopg.connect(url) as raw:
        assert raw.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
    assert do("migrate") == f"Applied: {', '.join(ALL)}\n"
    assert do(*create).startswith("cf_")
    assert run([*create, "--database", url]) == 1  # there is one of that name now
    with psycopg.connect(url) as raw:
        assert raw.execute("SELECT name FROM token").fetchall() == [("first",)]


async def test_what_cannot_be_opened_is_refused_with_the_reason_and_without_the_password(
    postgresql: Postgresql,
) -> None:
    name = postgresql.create()
    postgresql.admin("CREATE DATABASE {} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'", f"{name}-latin")
    good = postgresql.url(name, port=postgresql.port)
    refused = {
        good.replace(postgresql.password, "hunter2"): "password authentication failed",
        good.replace(f"{postgresql.port}", "1"): "Connection refused",
        good.replace(name, "nowhere"): '"nowhere" does not exist',
        good.replace(postgresql.password, "hunter2%zz"): "the address cannot be read",
        f"{good}?options=-c%20nonsense%3D1": "nonsense",
        postgresql.url(f"{name}-latin"): "its encoding is LATIN1",
    }
    for url, reason in refused.items():
        with pytest.raises(DatabaseUnusable, match=reason) as caught:
            await Database(url).open()
        assert "hunter2" not in str(caught.value)
        assert postgresql.password not in str(caught.value)


async def test_a_role_that_may_not_make_tables_is_told_so(postgresql: Postgresql) -> None:
    name = postgresql.create()
    postgresql.admin("DO $$ BEGIN CREATE ROLE guest LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
    url = postgresql.url(name).replace("coldframe@", "guest@")
    with pytest.raises(DatabaseFailed, match=r"insufficient privilege \(42501\)"):
        await Database(url).open()


async def test_an_address_may_say_where_its_tables_are_and_what_its_deadlines_are(postgresql: Postgresql) -> None:
    name = postgresql.create()
    postgresql.admin("CREATE SCHEMA coldframe", on=name)
    url = f"{postgresql.url(name)}&options=-csearch_path%3Dcoldframe%20-cstatement_timeout%3D1234"
    async with Database(url) as db:
        await db.run(events.append, "test")
        shown = {
            setting: (await db.run(database.execute_sql, f"SHOW {setting}")).fetchone()[0]
            for setting in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        }
    assert shown == {
        "statement_timeout": "1234ms",
        "lock_timeout": "10s",
        "idle_in_transaction_session_timeout": "30s",
    }
    assert postgresql.admin("SELECT type FROM coldframe.event", on=name) == [("test",)]


async def test_what_is_answered_for_is_on_the_disk_whatever_the_servers_default(postgresql: Postgresql) -> None:
    name = postgresql.create()
    for default, shown in (("off", "on"), ("remote_apply", "remote_apply")):
        postgresql.admin(f"ALTER DATABASE {{}} SET synchronous_commit = {default}", name)
        async with Database(postgresql.url(name)) as db:
            cursor = await db.run(database.execute_sql, "SHOW synchronous_commit")
            assert cursor.fetchone() == (shown,)


async def test_a_text_that_holds_nul_is_kept_without_it_and_asked_for_in_vain(url: str) -> None:
    async with Database(url) as db:
        await db.run(events.append, "test", host="a\0b")
        assert [event.host for event in await db.run(events.read, 0, 9)] == ["a\ufffdb"]
        with pytest.raises(HostNotFound):
            await db.run(hosts.get, "a\0b")


async def test_a_failure_tells_nothing_of_the_values_that_were_to_be_stored(url: str) -> None:
    async with Database(url) as db:
        with pytest.raises(DatabaseFailed, match=r"undefined table \(42P01\)") as caught:
            await db.run(database.execute_sql, "INSERT INTO nowhere VALUES (%s)", ("hunter2",))
    assert "hunter2" not in str(caught.value)
    assert "INSERT" not in str(caught.value)
