"""What tests that only concern PostgreSQL have: short deadlines, and a wire between controller and server."""

from collections.abc import AsyncIterator, Iterator

import pytest

from controller.db import Database
from controller.postgresql import Deadlines
from tests.controller.databases import OnServer
from tests.controller.postgresql.proxy import Proxy
from tests.lab.postgresql import Postgresql

#: Long enough for a machine that is busy, and in the order of the real ones.
SHORT = Deadlines(connect_s=2, lock_s=0.4, statement_s=0.6, transaction_s=0.5, answer_s=1.2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One server is enough for all that `make test` has: what is in one group goes to one process."""
    for item in items:
        if item.path.parent.name == "postgresql" and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.xdist_group("postgresql"))


@pytest.fixture
def databases(postgresql: Postgresql) -> Iterator[OnServer]:
    made = OnServer(postgresql)
    yield made
    made.close()


@pytest.fixture
def proxy(postgresql: Postgresql) -> Iterator[Proxy]:
    with Proxy(postgresql.port) as made:
        yield made


@pytest.fixture
async def hasty(databases: OnServer) -> AsyncIterator[Database]:
    """A database whose deadlines are short."""
    async with Database(databases.new(), deadlines=SHORT) as opened:
        yield opened
