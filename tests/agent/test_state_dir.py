"""The state directory is private and one agent's at a time."""

import stat
from pathlib import Path

import pytest

from agent.errors import StateDirInUse
from agent.state_dir import claimed


@pytest.mark.case("X5")
def test_it_is_made_private_and_kept_private(tmp_path: Path) -> None:
    state_dir = tmp_path / "a" / "state"
    with claimed(state_dir):
        assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    state_dir.chmod(0o755)
    with claimed(state_dir):
        assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700


def test_two_agents_never_share_it(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(StateDirInUse, match="Another agent"), claimed(tmp_path):
        pytest.fail("both have it")
    with claimed(tmp_path):
        pass
