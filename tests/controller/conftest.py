"""What the controller's tests share: a database of their own, looked over after each test.

Each test that uses one runs on SQLite and on PostgreSQL: those of ``QUICK`` in ``make test``, all others on PostgreSQL
in ``make test-slow`` only.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from controller.db import Database
from controller.store import invariants
from tests.controller.databases import Databases, OnServer, SqliteFiles
from tests.controller.world import World, world

QUICK = tuple(
    f"tests.controller.{name}"
    for name in (
        *("store.test_events", "store.test_groups", "store.test_hosts", "store.test_operations", "store.test_paging"),
        *("store.test_tokens", "api.test_dry_run", "test_db", "test_retention"),
    )
)
#: Those of PostgreSQL alone, and thousands of faults that a new database each time would make hours of; what of them
#: concerns its commits is in tests/controller/postgresql/test_faults.py.
ELSEWHERE = ("tests.controller.postgresql.", "tests.controller.operations.test_faults")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses a database on both, unless it says itself on which, or is done otherwise elsewhere."""
    says_itself = any("databases" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    only_one = says_itself or metafunc.module.__name__.startswith(ELSEWHERE)
    if "databases" not in metafunc.fixturenames or only_one:
        return
    quick = metafunc.module.__name__.startswith(QUICK)
    # One server is enough for all that `make test` has: what is in one group goes to one process.
    marks = [pytest.mark.xdist_group("postgresql")] if quick else [pytest.mark.slow]
    both = [pytest.param("sqlite", id=pytest.HIDDEN_PARAM), pytest.param("postgresql", marks=marks)]
    metafunc.parametrize("databases", both, indirect=True)


@pytest.fixture
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Databases]:
    """What makes this test's databases."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield SqliteFiles(tmp_path)
        return
    made = OnServer(request.getfixturevalue("postgresql"))
    yield made
    made.close()


@pytest.fixture
async def db(databases: Databases) -> AsyncIterator[Database]:
    """A fresh database. When the test is done nothing in it may belong to nothing (guarantee 6)."""
    async with Database(databases.new()) as opened:
        yield opened
        assert await opened.run(invariants.orphans) == []


@pytest.fixture
async def one(databases: Databases) -> AsyncIterator[World]:
    """A controller at work with one played host and VM. When the test is done records and host must agree."""
    async with world(databases) as made:
        yield made
        await made.mend()
        await made.check()
