"""What leaves the house: the wheel, the lock files, and nothing of the machine it was written on."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.contract.sources import ROOT, tracked

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_PIN = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    return dict(_PIN.findall((ROOT / name).read_text()))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel that was built from a copy, so that nothing is left in the working tree."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tracked():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    subprocess.run(command, capture_output=True, check=True)
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built).namelist()


def test_the_wheel_holds_just_agent_and_controller(wheel: list[str]) -> None:
    info = f"coldframe-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in wheel} == {"agent", "controller", info}


def test_the_wheel_holds_every_module_and_migration(wheel: list[str]) -> None:
    wanted = {
        str(path.relative_to(ROOT)) for path in tracked() if path.relative_to(ROOT).parts[0] in {"agent", "controller"}
    }
    assert wanted - set(wheel) == set()


def test_the_lock_pins_everything_that_the_project_asks_for() -> None:
    extras = PROJECT["optional-dependencies"]
    asked = {
        "requirements.lock": extras,
        "requirements-run.lock": {one: extras[one] for one in ("agent", "controller")},
    }
    for lock, groups in asked.items():
        pinned = pins(lock)
        for text in [*PROJECT["dependencies"], *(one for group in groups.values() for one in group)]:
            wanted = Requirement(text)
            version = pinned.get(canonicalize_name(wanted.name))
            assert version is not None, f"{lock} does not have {wanted.name}; run: make lock"
            assert version in wanted.specifier, f"{lock} has {wanted.name} {version}; run: make lock"


def test_both_locks_agree_and_every_pin_has_hashes() -> None:
    everything, running = pins("requirements.lock"), pins("requirements-run.lock")
    assert {name: everything.get(name) for name in running} == running
    for name in ("requirements.lock", "requirements-run.lock"):
        entries = re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text())
        assert [entry.split("=")[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_nothing_of_the_machine_or_a_registry_is_in_the_project() -> None:
    # Put together here, so that this file does not hold what it looks for. A path counts where nothing stands before
    # it that would make it a part of another: a checkout in /app does not forbid to write of agent/app.
    words = ["://" + "pypi", "files." + "pythonhosted", "--index" + "-url=", "--extra-index" + "-url"]
    places = [re.escape(word) for word in words]
    places += [
        rf"(?<![\w./-]){re.escape(str(place))}/" for place in (ROOT, Path.home() / ".cache", Path.home() / ".venv")
    ]
    pattern = re.compile("|".join(places))
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked()
        for match in pattern.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert found == []


def test_no_work_is_left_marked_in_the_source() -> None:
    mark = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    found = [str(path) for path in tracked() if path.suffix in {".py", ".sh"} and mark.search(path.read_text("utf-8"))]
    assert found == []
