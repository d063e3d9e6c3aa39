"""A host in a directory, and an agent's heart on it."""

from pathlib import Path

import pytest

from agent.transactions.manager import Manager
from tests.agent.transactions.rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path).build()


@pytest.fixture
def manager(rig: Rig) -> Manager:
    return rig.manager()
