"""F5: storage that is full, read-only or fails at the points of a transaction, in each place that the agent writes.

And descriptors, processes and threads that are not to be had, and qemu-img killed by the kernel.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from tests.integration import faulty
from tests.integration.scarce import FAILING
from tests.visits import Struck

KINDS = (
    *("snapshot", "revert", "restore", "delete", "delete-down", "delete-mixed"),
    *("clone", "full-clone", "export", "import"),
)
#: `make test` tries every so-manieth trial of these, `make test-slow` each of all; primes, so that every fault has its
#: turn.
QUICK = ("snapshot", "revert", "delete-mixed", "clone")
SAMPLE = 19
SAMPLE_OF_CALLS = 47
#: The calls that fail, the kinds of transaction that `make test` samples, and how many of their calls it leaves out.
SCARCE_CALLS = [
    *(("io-errors", kind, SAMPLE_OF_CALLS) for kind in QUICK),
    ("descriptors", "revert", 127),
    ("processes", "delete-mixed", 7),
    ("killed-tool", "delete-mixed", 7),
]
#: How a transaction may end for its caller; a deletion that ``waited`` goes on by itself when it can.
ENDINGS = {"committed", "waited", "storage-failed", "no-space", "qemu-img-failed"}
#: What says that it could not be looked at, by what it was looking for.
BLIND = {"tool-failed", "image-refused", "host-file-missing", "hypervisor-unavailable"}

Tried = Callable[..., dict[str, int]]


@pytest.fixture
def tried(tmp_path: Path, struck: Struck) -> Tried:
    """Return what runs trials in a mount namespace of their own, and tells how often a transaction ended how."""

    def trials(kind: str, step: int, *options: str, env: Mapping[str, str] | None = None) -> dict[str, int]:
        command: list[str | Path] = ["unshare", "--mount", "--propagation", "private", "--fork", "--kill-child"]
        command += [sys.executable, "-m", "tests.integration.scarce", tmp_path, kind, "--step", str(step), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        found = msgspec.json.decode(done.stdout, type=dict[str, int])
        assert not found.keys() - ENDINGS - (BLIND if {*options} & {"descriptors", "processes"} else set())
        struck(sum(found.values()))
        return found

    return trials


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return faulty.environment(tmp_path_factory.mktemp("faulty"))


@pytest.mark.case("F5")
@pytest.mark.parametrize("kind", QUICK)
def test_places_that_fill_up_or_turn_read_only_leave_the_old_state_or_the_new(tried: Tried, kind: str) -> None:
    assert sum(tried(kind, SAMPLE).values()) > 3


@pytest.mark.case("F5")
@pytest.mark.parametrize(("calls", "kind", "step"), SCARCE_CALLS)
def test_calls_that_fail_leave_the_old_state_or_the_new(
    tried: Tried, calls: str, kind: str, step: int, failing: dict[str, str]
) -> None:
    assert sum(tried(kind, step, "--failing", calls, env=failing).values()) > 2


@pytest.mark.slow
@pytest.mark.case("F5")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_places_that_fail_at_any_point_leave_the_old_state_or_the_new(tried: Tried, kind: str) -> None:
    found = tried(kind, 1)
    assert sum(found.values()) > 60
    assert found["storage-failed"] > 0


@pytest.mark.slow
@pytest.mark.case("F5")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("calls", FAILING)
def test_any_call_that_fails_leaves_the_old_state_or_the_new(
    tried: Tried, kind: str, calls: str, failing: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    found = tried(kind, 1, "--failing", calls, env=failing)
    record_property("figure", f"{kind}, {calls}: {found}")
    if calls in {"io-errors", "descriptors"}:
        assert sum(found.values()) > 60
        assert found["storage-failed"] > 0
