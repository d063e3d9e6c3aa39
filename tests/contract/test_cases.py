"""The case plugin: cases are tied to tests, and nothing is skipped in silence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import read_page

ROOT = Path(__file__).parents[2]
IN_FORCE = (
    [f"B{n}" for n in range(1, 14)]
    + [f"S{n}" for n in range(1, 16)]
    + [f"R{n}" for n in range(1, 10)]
    + [f"D{n}" for n in range(1, 11)]
    + [f"C{n}" for n in range(1, 6)]
    + [f"P{n}" for n in range(1, 9)]
    + ["F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "X7"]
)


#: xdist's workers get it too.
LEAN = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def session(tmp_path: Path, body: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a session of its own over one test module, without the plugins that it has no use for."""
    (tmp_path / "test_it.py").write_text(f"import pytest\n{body}\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    case(id): x\n    real: x\n    slow: x\n")
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "tests.cases", "-p", "no:cacheprovider", *options]
    command += ["-c", str(tmp_path / "pytest.ini"), "--rootdir", str(tmp_path), str(tmp_path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=LEAN)


def test_the_page_lists_what_is_promised_now() -> None:
    in_force = [case for case, status in read_page().items() if status == "in force"]
    assert in_force == sorted(IN_FORCE, key=in_force.index)
    assert len(in_force) == len(IN_FORCE)


def test_an_unknown_case_stops_the_session(tmp_path: Path) -> None:
    done = session(tmp_path, "@pytest.mark.case('Z9')\ndef test_a(): pass")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "Z9" in done.stdout + done.stderr


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_skipped_test_fails_the_session_and_is_named(tmp_path: Path, workers: str) -> None:
    done = session(tmp_path, "def test_a(): pytest.skip('no root')\ndef test_b(): pass", "-n", workers)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "FAILED not run: test_it.py::test_a" in done.stdout
    assert "no root" in done.stdout


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_whole_run_fails_for_each_case_that_no_test_showed(tmp_path: Path, workers: str) -> None:
    body = "@pytest.mark.real\n@pytest.mark.case('B1')\ndef test_a(): pass\n@pytest.mark.case('X1')\ndef test_b(): pass"
    done = session(tmp_path, body, "--whole-run", "-n", workers)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "2 tests ran, 1 of them passed on a private libvirt host" in done.stdout
    assert f"1 of {len(IN_FORCE)} cases in force were shown" in done.stdout
    assert "case B2 is in force and has no test" in done.stdout
    assert "case B1 is" not in done.stdout
    assert "case X2 is" not in done.stdout


def test_a_case_whose_tests_failed_is_named_with_them(tmp_path: Path) -> None:
    done = session(tmp_path, "@pytest.mark.case('B1')\ndef test_a(): assert 0", "--whole-run")
    assert "case B1 is in force and none passed of ['test_it.py::test_a']" in done.stdout


@pytest.mark.parametrize("workers", ["2"])
def test_figures_that_a_test_measured_are_told_at_the_end(tmp_path: Path, workers: str) -> None:
    body = "def test_a(record_property): record_property('figure', 'it took 3 s')"
    assert "\nit took 3 s\n" in session(tmp_path, body, "-n", workers).stdout


@pytest.mark.parametrize("workers", ["2"])
def test_left_out_tests_are_counted_with_the_command_that_runs_them(tmp_path: Path, workers: str) -> None:
    body = "@pytest.mark.slow\ndef test_a(): pass\ndef test_b(): pass\ndef test_c(): pass"
    done = session(tmp_path, body, "-m", "not slow", "-k", "not test_c", "-n", workers)
    assert done.returncode == pytest.ExitCode.OK
    assert "1 slow tests were left out; run them with: make test-slow" in done.stdout
    assert "1 more tests were left out by the options of this run" in done.stdout
