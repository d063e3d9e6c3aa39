"""What the controller's tests share: a database of their own, looked over after each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.db import Database
from controller.store import invariants
from tests.controller.world import World, world


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    """A fresh database. When the test is done nothing in it may belong to nothing (guarantee 6)."""
    async with Database(f"sqlite:///{tmp_path}/controller.db") as opened:
        yield opened
        assert await opened.run(invariants.orphans) == []


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[World]:
    """A controller at work with one played host and VM. When the test is done records and host must agree."""
    async with world(tmp_path) as made:
        yield made
        await made.mend()
        await made.check()
