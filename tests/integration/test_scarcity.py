"""F5: a full or read-only file system at the points of a transaction, in each place that the agent writes."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.integration.scarce import FAULTS, PLACES

#: Kinds whose points are told apart by what they write.
KINDS = ("snapshot", "revert")
#: `make test` tries every so-manieth point, `make test-slow` every one.
SAMPLE = 7


def trials(root: Path, kind: str, step: int) -> dict[str, int]:
    """Run the trials in a mount namespace of their own; return how often a transaction ended how."""
    namespace = ["unshare", "--mount", "--propagation", "private", "--fork", "--kill-child"]
    command: list[str | Path] = [
        *namespace,
        sys.executable,
        "-m",
        "tests.integration.scarce",
        root,
        kind,
        "--step",
        str(step),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=dict[str, int])


@pytest.mark.case("F5")
@pytest.mark.parametrize("kind", KINDS)
def test_places_that_fill_up_or_turn_read_only_leave_the_old_state_or_the_new(tmp_path: Path, kind: str) -> None:
    found = trials(tmp_path, kind, SAMPLE)
    assert found.keys() > {"committed", "storage-failed"}
    assert not found.keys() - {"committed", "storage-failed", "no-space", "qemu-img-failed", "waited"}, found


@pytest.mark.slow
@pytest.mark.case("F5")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_places_that_fail_at_any_point_leave_the_old_state_or_the_new(tmp_path: Path, kind: str) -> None:
    found = trials(tmp_path, kind, 1)
    assert sum(found.values()) > 10 * len(PLACES) * len(FAULTS)
    assert found["no-space"] > 0
    assert found["storage-failed"] > 0
