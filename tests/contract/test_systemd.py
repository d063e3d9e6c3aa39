"""The units as systemd reads them, and the example settings as the daemons read them."""

import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from agent import config as agent_config
from controller import config as controller_config

ROOT = Path(__file__).parents[2]
UNITS = ["agent", "controller"]

#: systemd's own measure from 0 to 10 (times ten here): 2.5 and below counts as well protected, root alone costs 0.4.
EXPOSURE_LIMIT = {"agent": 30, "controller": 15}


def rendered(name: str, directory: Path) -> Path:
    """Write the unit as `make install` does, with commands that exist."""
    command = directory / f"coldframe-{name}"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    text = (ROOT / "systemd" / f"coldframe-{name}.service").read_text()
    unit = directory / f"coldframe-{name}.service"
    unit.write_text(text.replace("@bindir@", str(directory)).replace("@sysconfdir@", "/etc"))
    return unit


@pytest.mark.case("X11")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong_with_the_unit(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", rendered(name, tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.case("X11")
@pytest.mark.parametrize("name", UNITS)
def test_the_unit_gives_little_away(name: str, tmp_path: Path) -> None:
    limit = f"--threshold={EXPOSURE_LIMIT[name]}"
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", limit, str(rendered(name, tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_agent_keeps_three_powers_and_the_controller_none() -> None:
    kept = {
        name: re.findall(
            r"^CapabilityBoundingSet=(.*)$", (ROOT / f"systemd/coldframe-{name}.service").read_text(), re.MULTILINE
        )
        for name in UNITS
    }
    assert kept == {"agent": ["CAP_DAC_OVERRIDE CAP_CHOWN CAP_FOWNER"], "controller": [""]}


@pytest.mark.parametrize(("name", "kind"), [("agent", agent_config.Config), ("controller", controller_config.Config)])
def test_the_example_settings_name_every_key_with_its_default(
    name: str, kind: type[msgspec.Struct], tmp_path: Path
) -> None:
    example = (ROOT / "systemd" / f"{name}.toml").read_text()
    keys = re.findall(r"^#([a-z_]+) = ", example, re.MULTILINE)
    assert sorted(keys) == sorted(kind.__struct_fields__)
    assert not [line for line in example.splitlines() if line and not line.startswith("#")]
    settings_file = tmp_path / "settings.toml"
    # What has no default shows a value all the same; those stay comments here.
    optional = {key for key in keys if getattr(kind(), key) is None}
    settings_file.write_text(
        re.sub(r"^#(?!(?:" + "|".join(optional) + r") =)([a-z_]+ = )", r"\1", example, flags=re.MULTILINE)
    )
    module = agent_config if name == "agent" else controller_config
    assert module.load(settings_file, {}).settings == kind()
