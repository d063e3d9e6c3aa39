"""F5: storage that is full, read-only or fails at the points of a transaction, in each place that the agent writes."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from tests.integration import io_errors

KINDS = ("snapshot", "revert", "restore", "delete", "delete-mixed", "clone", "full-clone", "export", "import")
#: `make test` tries every so-manieth trial of these, `make test-slow` each of all; primes, so that every fault has its
#: turn.
QUICK = ("snapshot", "revert", "delete-mixed", "clone")
SAMPLE = 19
SAMPLE_OF_CALLS = 31
#: How a transaction may end for its caller; a deletion that ``waited`` goes on by itself when it can.
ENDINGS = {"committed", "waited", "storage-failed", "no-space", "qemu-img-failed"}


def trials(root: Path, kind: str, step: int, *options: str, env: Mapping[str, str] | None = None) -> dict[str, int]:
    """Run the trials in a mount namespace of their own; return how often a transaction ended how."""
    command: list[str | Path] = ["unshare", "--mount", "--propagation", "private", "--fork", "--kill-child"]
    command += [sys.executable, "-m", "tests.integration.scarce", root, kind, "--step", str(step), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=dict[str, int])
    assert not found.keys() - ENDINGS
    return found


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return io_errors.environment(tmp_path_factory.mktemp("io-errors"))


@pytest.mark.case("F5")
@pytest.mark.parametrize("kind", QUICK)
def test_places_that_fill_up_or_turn_read_only_leave_the_old_state_or_the_new(tmp_path: Path, kind: str) -> None:
    assert sum(trials(tmp_path, kind, SAMPLE).values()) > 3


@pytest.mark.case("F5")
@pytest.mark.parametrize("kind", QUICK)
def test_writes_that_fail_leave_the_old_state_or_the_new(tmp_path: Path, kind: str, failing: dict[str, str]) -> None:
    assert sum(trials(tmp_path, kind, SAMPLE_OF_CALLS, "--io-errors", env=failing).values()) > 2


@pytest.mark.slow
@pytest.mark.case("F5")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_places_that_fail_at_any_point_leave_the_old_state_or_the_new(tmp_path: Path, kind: str) -> None:
    found = trials(tmp_path, kind, 1)
    assert sum(found.values()) > 60
    assert found["storage-failed"] > 0


@pytest.mark.slow
@pytest.mark.case("F5")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_any_write_that_fails_leaves_the_old_state_or_the_new(
    tmp_path: Path, kind: str, failing: dict[str, str]
) -> None:
    found = trials(tmp_path, kind, 1, "--io-errors", env=failing)
    assert sum(found.values()) > 60
    assert found["storage-failed"] > 0
