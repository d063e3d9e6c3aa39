"""What the controller's tests share: a database of their own, looked over after each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.db import Database
from controller.store import invariants


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    """A fresh database. When the test is done nothing in it may belong to nothing (guarantee 6)."""
    async with Database(f"sqlite:///{tmp_path}/controller.db") as opened:
        yield opened
        assert await opened.run(invariants.orphans) == []
