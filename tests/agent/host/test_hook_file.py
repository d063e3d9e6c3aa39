"""The hook as a file: in force or not, and told where the state directory is."""

import stat
from pathlib import Path

import pytest

from agent.host import hook_file

SHIPPED = Path(__file__).parents[3] / "hooks" / "qemu"


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    path = tmp_path / "qemu.d" / "50-coldframe"
    path.parent.mkdir()
    path.write_bytes(SHIPPED.read_bytes())
    path.chmod(0o755)
    return path


def test_the_script_that_is_shipped_is_in_force_where_it_is_executable(hook: Path) -> None:
    assert hook_file.state(hook) == "ok"
    hook.chmod(0o644)
    assert hook_file.state(hook) == "not-executable"


def test_another_script_at_its_place_is_different(hook: Path) -> None:
    for text in ("#!/bin/sh\nexit 0\n", "#!/bin/sh\n# coldframe-hook: 11\n", "", "#!/bin/sh\n # coldframe-hook: 1\n"):
        hook.write_text(text)
        assert hook_file.state(hook) == "different"


def test_no_script_and_a_directory_are_missing(hook: Path, tmp_path: Path) -> None:
    hook.unlink()
    assert hook_file.state(hook) == "missing"
    hook.mkdir()
    assert hook_file.state(hook) == "missing"
    assert hook_file.state(tmp_path / "none" / "50-coldframe") == "missing"


def test_the_hook_is_told_once_where_the_state_directory_is(hook: Path) -> None:
    assert hook_file.told_state_dir(hook) is None
    assert hook_file.write_conf(hook, Path("/state dir"))
    assert not hook_file.write_conf(hook, Path("/state dir"))
    conf = hook.with_name("50-coldframe.conf")
    assert conf.read_text() == "state_dir=/state dir\n"
    assert stat.S_IMODE(conf.stat().st_mode) == 0o644
    assert hook_file.told_state_dir(hook) == Path("/state dir")
    assert hook_file.write_conf(hook, Path("/other"))
    assert hook_file.told_state_dir(hook) == Path("/other")


def test_without_a_directory_of_hooks_nothing_is_written(tmp_path: Path) -> None:
    assert not hook_file.write_conf(tmp_path / "qemu.d" / "50-coldframe", Path("/state"))
    assert list(tmp_path.iterdir()) == []
