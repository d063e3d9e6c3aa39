"""The pytest plugin that counts at which points faults were made to strike, and fails a whole run for each one missed.

A test notes a point with the ``visit`` fixture, after the fault struck there and all was looked over. What there is to
visit comes from the code (``tests/points.py``). A fault that strikes at no named point is counted with ``struck``. The
summary tells how often each test struck. Notes travel with the reports, so it works under xdist.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests import points

#: Called with a point's name as the checkpoint heard it.
Visit = Callable[[str], None]
#: Called with how often a fault struck, after all was looked over each time.
Struck = Callable[[int], None]
_WHOLE = ("operation ", "transaction ")  # noted once all points of one kind have been


@pytest.fixture
def struck(record_property: Callable[[str, object], None]) -> Struck:
    """Return what notes how often a fault struck."""

    def note(times: int) -> None:
        record_property("struck", times)

    return note


@pytest.fixture
def visit(record_property: Callable[[str, object], None], struck: Struck) -> Visit:
    """Return what notes that a fault struck at a point."""
    noted: set[str] = set()

    def note(point: str) -> None:
        struck(0 if point.startswith(_WHOLE) else 1)
        for name in points.matching(point):
            if name not in noted:
                noted.add(name)
                record_property("point", name)

    return note


class Visits:
    """Which points the tests that passed have visited."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.visited: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.visited.update(str(value) for name, value in report.user_properties if name == "point")
            times = sum(int(str(value)) for name, value in report.user_properties if name == "struck")
            self.struck[report.nodeid.partition("[")[0]] += times

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        reports = not hasattr(self.config, "workerinput")
        if reports and session.exitstatus == pytest.ExitCode.OK and self.missed():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def missed(self) -> dict[str, str]:
        """Return the points that no test visited, with what to add; empty unless the whole suite ran."""
        if not self.config.getoption("--whole-run"):
            return {}
        return {name: remedy for name, remedy in points.required().items() if name not in self.visited}

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        told = [(test, times) for test, times in sorted(self.struck.items()) if times]
        if told:
            known = points.required()
            seen = sum(name in self.visited for name in known)
            terminalreporter.section("where faults were made to strike")
            terminalreporter.write_line(f"{seen} of the {len(known)} points that the code has were visited")
            for test, times in told:
                terminalreporter.write_line(f"{times:6} times in {test}")
        for name, remedy in sorted(self.missed().items()):
            terminalreporter.write_line(f"FAILED no fault struck at {name!r}: add {remedy}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Start keeping count."""
    config.pluginmanager.register(Visits(config), "coldframe-visits")
