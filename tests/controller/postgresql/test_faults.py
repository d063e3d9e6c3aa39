"""Operations whose database is lost at a commit: the order, the answer, or the server's process, at every one of them.

As ``tests/integration/test_scarce_database.py`` does with a full disk on SQLite. Records and host agree in the end,
by the same controller, which goes on by itself.
"""

from collections import Counter
from typing import Literal

import pytest

from tests.controller.databases import OnServer, name_of
from tests.controller.operations.test_faults import attempt, good_run, mended
from tests.controller.postgresql.proxy import Proxy
from tests.controller.scenarios import SCENARIOS
from tests.controller.strike import Stage, Striker, staged
from tests.lab.postgresql import Postgresql
from tests.visits import Struck

Loss = Literal["order", "answer", "backend"]
LOSSES: tuple[Loss, ...] = ("order", "answer", "backend")
#: `make test` takes every so-manieth commit of the first, `make test-slow` every commit of all.
QUICK, SAMPLE = ("create",), 5
WHOLE = ("create", "revert", "delete", "clone")
#: ``clones-failed``: one of several could not be made, and it says why.
ENDS = {"succeeded", "refused", "database-failed", "commit-unconfirmed", "clones-failed"}


class Cutter(Striker):
    """Where another strikes at once, this one has the database lost at the commit that comes next."""

    def __init__(self, proxy: Proxy, server: Postgresql) -> None:
        super().__init__()
        self.proxy, self.server = proxy, server
        self.loss: Loss = "order"
        self.name = ""

    def _strike(self, name: str, number: int) -> None:
        del name, number
        if self.loss != "backend":
            self.proxy.cut_next(self.loss)
            return
        for pid in self.server.backends(self.name):
            self.server.admin(f"SELECT pg_terminate_backend({pid}, 5000)")


class Through(OnServer):
    """Databases that are reached through the proxy."""

    def __init__(self, server: Postgresql, proxy: Proxy) -> None:
        super().__init__(server)
        self.proxy = proxy

    def new(self) -> str:
        return self._through(super().new())

    def copy(self, url: str) -> str:
        return self._through(super().copy(url))

    def _through(self, url: str) -> str:
        return self.server.url(name_of(url), port=self.proxy.port)


async def trial(stage: Stage, cutter: Cutter, kind: str, point: str, loss: Loss) -> str:
    """Return how the operation ended, or that the caller was refused; records and host agree in the end."""
    scenario = SCENARIOS[kind]
    async with stage.world() as one:
        cutter.name, cutter.loss = name_of(one.db.url), loss
        cutter.begin(point)
        operation = await attempt(one, scenario)
        assert cutter.struck, point
        await mended(one, scenario)
        assert (await one.sync()).state == "succeeded"
        await one.check()
    if operation is None:
        return "refused"
    return operation.state if operation.error is None else operation.error.code


async def every(server: Postgresql, proxy: Proxy, kind: str, step: int) -> Counter[str]:
    """Lose the database in each way at every ``step``-th commit; return how often an operation ended how."""
    found: Counter[str] = Counter()
    databases, cutter = Through(server, proxy), Cutter(proxy, server)
    try:
        async with staged(databases, SCENARIOS[kind].begin) as stage:
            stage.striker = cutter
            points = (await good_run(stage, SCENARIOS[kind]))[0]
            commits = [point for point in points if point.startswith("before database")]
            for point, loss in [(point, loss) for point in commits for loss in LOSSES][::step]:
                found[await trial(stage, cutter, kind, point, loss)] += 1
    finally:
        databases.close()
    return found


@pytest.mark.case("F5")
@pytest.mark.parametrize("kind", QUICK)
async def test_a_database_that_is_lost_at_a_commit_ends_every_operation(
    postgresql: Postgresql, proxy: Proxy, kind: str, struck: Struck
) -> None:
    found = await every(postgresql, proxy, kind, SAMPLE)
    struck(sum(found.values()))
    assert sum(found.values()) > 2
    assert not found.keys() - ENDS, found


@pytest.mark.slow
@pytest.mark.case("F5")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", WHOLE)
async def test_a_database_that_is_lost_at_any_commit_ends_every_operation(
    postgresql: Postgresql, proxy: Proxy, kind: str, struck: Struck
) -> None:
    found = await every(postgresql, proxy, kind, 1)
    struck(sum(found.values()))
    assert not found.keys() - ENDS, found
