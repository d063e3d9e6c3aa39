"""F5: the controller's database, whose disk is full or fails at the commits of its operations."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.controller.scenarios import SCENARIOS
from tests.integration import faulty
from tests.visits import Struck

#: `make test` tries every so-manieth commit of these, `make test-slow` every commit of all.
QUICK = ("create", "revert", "delete")
SAMPLE = 7


def trials(root: Path, kind: str, step: int) -> dict[str, int]:
    """Run the trials in a mount namespace of their own; return how often an operation ended how."""
    command: list[str | Path] = ["unshare", "--mount", "--propagation", "private", "--fork", "--kill-child"]
    command += [sys.executable, "-m", "tests.integration.scarce_database", root / "trials", kind, "--step", str(step)]
    env = faulty.environment(root)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=dict[str, int])


@pytest.mark.case("F5")
@pytest.mark.parametrize("kind", QUICK)
def test_a_database_that_cannot_write_for_a_moment_ends_every_operation(
    tmp_path: Path, kind: str, struck: Struck
) -> None:
    found = trials(tmp_path, kind, SAMPLE)
    struck(sum(found.values()))
    assert sum(found.values()) - found.get("unharmed", 0) > 1
    assert not found.keys() - {"succeeded", "refused", "database-failed", "unharmed"}


@pytest.mark.slow
@pytest.mark.case("F5")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", SCENARIOS)
def test_a_database_that_cannot_write_at_any_commit_ends_every_operation(
    tmp_path: Path, kind: str, struck: Struck
) -> None:
    found = trials(tmp_path, kind, 1)
    struck(sum(found.values()))
    assert found.get("unharmed", 0) < sum(found.values()) / 2  # commits that had nothing to write
