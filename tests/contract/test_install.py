"""``make install`` and ``make uninstall`` below a DESTDIR, from a copy of the sources."""

import subprocess
from pathlib import Path

import pytest

from tests.contract.sources import ROOT, tracked


@pytest.mark.slow
def test_an_installation_is_whole_keeps_the_admins_files_and_goes_again(tmp_path: Path) -> None:
    source, stage = tmp_path / "source", tmp_path / "stage"
    for path in tracked():
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        target.chmod(path.stat().st_mode)
    mine = stage / "etc/coldframe/agent.toml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# mine\n")
    make = ["make", "-C", str(source), f"DESTDIR={stage}", "PREFIX=/usr"]

    subprocess.run([*make, "install"], check=True, capture_output=True, timeout=280)
    assert mine.read_text() == "# mine\n"
    assert (stage / "etc/coldframe/controller.toml").exists()
    assert (stage / "etc/libvirt/hooks/qemu.d/50-coldframe").stat().st_mode & 0o777 == 0o755
    unit = (stage / "usr/lib/systemd/system/coldframe-agent.service").read_text()
    assert "ExecStart=/usr/bin/coldframe-agent serve" in unit
    assert "@" not in unit.replace("@system-service", "")
    for command in ("coldframe", "coldframe-agent", "coldframe-controller"):
        assert (stage / "usr/bin" / command).readlink() == Path("/usr/lib/coldframe/venv/bin", command)
    script = stage / "usr/lib/coldframe/venv/bin/coldframe"
    assert str(stage) not in script.read_text()
    done = subprocess.run(
        [stage / "usr/lib/coldframe/venv/bin/python", script, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("coldframe ")

    subprocess.run([*make, "uninstall"], check=True, capture_output=True)
    left = {str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file() or path.is_symlink()}
    assert left == {"etc/coldframe/agent.toml", "etc/coldframe/controller.toml"}
