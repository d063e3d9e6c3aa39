"""The pytest plugin behind ``@pytest.mark.case``: ties tests to docs/guarantees.md and hides nothing.

* A test that names a case which the page does not list stops the session.
* With ``--whole-run`` every case in force needs a collected test, and one that passed, or the session fails.
* A skipped or expectedly failing test fails the session: what cannot run must say so and not pass for run.
* The summary says what ran, what did not and how to run it, and gives the figures that tests measured: each
  ``record_property("figure", "one line")``.

Works under xdist: a worker sends what it collected through ``workeroutput``, outcomes travel with the reports.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "guarantees.md"
ROW = re.compile(r"^\| ([A-Z]\d+) \| (.+) \| (in force|planned) \|$")
Status = Literal["in force", "planned"]


def read_page(path: Path = PAGE) -> dict[str, str]:
    """Return ``{case id: "in force" | "planned"}`` from the page's tables; an id listed twice is an error."""
    cases: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = ROW.match(line)
        if row is None:
            continue
        if row[1] in cases:
            raise ValueError(f"{path.name} lists {row[1]} twice")
        cases[row[1]] = row[3]
    return cases


def case_ids(item: pytest.Item) -> list[str]:
    """Return the ids that a test's marks name."""
    return [str(id_) for mark in item.iter_markers("case") for id_ in mark.args]


class Cases:
    """What this session collected and how it ended."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.known = read_page()
        self.collected: dict[str, set[str]] = defaultdict(set)
        self.deselected: dict[str, bool] = {}  # node id: is it slow?
        self.passed: dict[str, set[str]] = defaultdict(set)
        self.outcomes: dict[str, str] = {}
        self.real: set[str] = set()
        self.not_run: dict[str, str] = {}
        self.figures: list[str] = []

    # Collecting, in the process that has the tests.

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for case in case_ids(item):
                if case not in self.known:
                    raise pytest.UsageError(f"{item.nodeid} names case {case}, which {PAGE.name} does not list")
                self.collected[case].add(item.nodeid)
                item.user_properties.append(("case", case))
            if item.get_closest_marker("real"):
                item.user_properties.append(("real", True))

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        for item in items:
            self.deselected[item.nodeid] = item.get_closest_marker("slow") is not None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(self.config, "workeroutput", None)
        if output is not None:
            output["cases"] = {case: sorted(tests) for case, tests in self.collected.items()}
            output["deselected"] = self.deselected
        elif session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED} and self.complaints():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    # Gathering, in the process that reports.

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {})
        for case, tests in output.get("cases", {}).items():
            self.collected[case].update(tests)
        self.deselected.update(output.get("deselected", {}))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = report.user_properties
        if ("real", True) in properties:
            self.real.add(report.nodeid)
        if report.skipped or hasattr(report, "wasxfail"):
            self.not_run[report.nodeid] = getattr(report, "wasxfail", None) or str(report.longrepr)
        if self.outcomes.get(report.nodeid, "passed") == "passed":
            self.outcomes[report.nodeid] = report.outcome
        for name, value in properties:
            if name == "case" and report.when == "call" and report.passed:
                self.passed[str(value)].add(report.nodeid)
            if name == "figure" and report.when == "call":
                self.figures.append(str(value))

    # Telling.

    def complaints(self) -> list[str]:
        """Say why a session in which no test failed is a failure all the same."""
        found = [f"not run: {test}: {reason}" for test, reason in sorted(self.not_run.items())]
        if self.config.getoption("--whole-run"):
            for case, status in self.known.items():
                if status != "in force" or self.passed[case]:
                    continue
                tests = sorted(self.collected[case])
                found.append(f"case {case} is in force and {f'none passed of {tests}' if tests else 'has no test'}")
        return found

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        write = terminalreporter.write_line
        terminalreporter.section("what ran and what did not")
        in_force = [case for case, status in self.known.items() if status == "in force"]
        shown = [case for case in in_force if self.passed[case]]
        real = sum(self.outcomes.get(test) == "passed" for test in self.real)
        write(f"{len(self.outcomes)} tests ran, {real} of them passed on a private libvirt host")
        write(f"{len(shown)} of {len(in_force)} cases in force were shown; docs/{PAGE.name} has what each means")
        for figure in self.figures:
            write(figure)
        slow = sum(self.deselected.values())
        if slow:
            write(f"{slow} slow tests were left out; run them with: make test-slow")
        if len(self.deselected) > slow:
            write(f"{len(self.deselected) - slow} more tests were left out by the options of this run")
        if self.config.getoption("--cases"):
            for case in self.known:
                write(f"{case:4} {self.known[case]:9} {' '.join(sorted(self.collected[case])) or '-'}")
        for complaint in self.complaints():
            write(f"FAILED {complaint}", red=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    group = parser.getgroup("coldframe")
    group.addoption("--whole-run", action="store_true", help="fail unless every case in force was shown")
    group.addoption("--cases", action="store_true", help="list the tests of each case at the end")


def pytest_configure(config: pytest.Config) -> None:
    """Start keeping count."""
    config.pluginmanager.register(Cases(config), "coldframe-cases")
