"""Every example of the pages is run: the lines after ``$`` in ``console`` blocks, in order, on a real VM."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.sources import ROOT
from tests.lab import requirements
from tests.lab.daemons import AgentDaemon, ControllerDaemon
from tests.lab.host import LabHost
from tests.lab.paths import PYTHON

#: In this order: the operator enrols the host and makes the snapshots that the others look at.
PAGES = ["docs/operator.md", "docs/automation.md", "README.md"]
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the commands of a page's console blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [line[2:] for block in _BLOCK.findall(text) for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """An environment and directory as a reader of the pages has them: a VM that has run once, and two daemons."""
    missing = requirements.missing()
    assert not missing, missing
    with LabHost("kvm1") as host, AgentDaemon(host) as agent, ControllerDaemon(tmp_path / "c") as controller:
        vm = host.define_guest("win11")
        vm.boot()
        vm.shutdown()
        work = tmp_path / "work"
        work.mkdir()
        shutil.copy(agent.token_file, work / "agent.token")
        environment = {
            "PATH": f"{PYTHON.parent}:{os.environ['PATH']}",
            "HOME": str(work),
            "LC_ALL": "C.UTF-8",
            "COLDFRAME_URL": controller.url,
            "COLDFRAME_TOKEN_FILE": str(controller.token_file),
            "AGENT_URL": agent.url,
            "URL": controller.url,
            "TOKEN": controller.token,
        }
        yield environment, work


@pytest.mark.real
def test_every_example_of_the_pages_works(shell: tuple[dict[str, str], Path]) -> None:
    environment, work = shell
    for page in PAGES:
        assert commands(page)
        for command in commands(page):
            done = subprocess.run(
                ["sh", "-c", command],
                env=environment,
                cwd=work,
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            assert done.returncode == 0, f"{page}: {command}\n{done.stdout}{done.stderr}"
            assert done.stdout, f"{page}: {command} says nothing"


def test_no_other_page_has_examples_that_nobody_runs() -> None:
    pages = [path.relative_to(ROOT) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]]
    assert {str(page) for page in pages if commands(str(page))} == set(PAGES)


def test_no_page_holds_the_marks_of_a_merge() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    marks = re.compile(r"^(<<<<<<<|>>>>>>>) ", re.MULTILINE)
    assert [path.name for path in pages if marks.search(path.read_text(encoding="utf-8"))] == []
