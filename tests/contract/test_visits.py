"""The visits plugin: a point that the code has and no fault struck at fails a whole run, with what to add."""

from pathlib import Path

import pytest

from tests import points
from tests.contract.test_cases import session


def test_a_whole_run_fails_for_each_point_that_no_fault_struck_at(tmp_path: Path) -> None:
    body = "def test_a(record_property): record_property('point', 'operation vm-sync')"
    done = session(tmp_path, body, "-p", "tests.visits", "--whole-run")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "FAILED no fault struck at 'operation snapshot-create': add a scenario of its kind" in done.stdout
    assert "FAILED no fault struck at 'before swap'" in done.stdout
    assert "'operation vm-sync'" not in done.stdout


def test_points_are_read_from_the_code() -> None:
    found = points.required()
    for name in ("before database operations.ungroup._ungroup", "after message commit", "step merge hidden bases"):
        assert name in found
    assert "before undo switch-disks" in found
    assert "before undo remove" not in found
    assert list(points.matching("before undo set-aside frozen vda")) == ["before undo set-aside frozen"]
