"""F5: the event log and the spool, each of whose writes fails."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.integration import faulty


@pytest.mark.case("F5")
@pytest.mark.case("B13")
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_any_write_that_fails_loses_no_note_and_logs_none_twice(
    tmp_path: Path, step: int, record_property: Callable[[str, object], None]
) -> None:
    command: list[str | Path] = [sys.executable, "-m", "tests.integration.scarce_events", tmp_path, str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=faulty.environment(tmp_path))
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=dict[str, int])
    record_property("figure", f"writes of the event log and the spool that failed: {found}")
    assert min(found.values()) > 40 / step
