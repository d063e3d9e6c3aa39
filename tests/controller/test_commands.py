"""The commands of ``coldframe-controller``, without the daemon."""

import subprocess
import sys
from pathlib import Path

import pytest

from controller.commands import run
from controller.db import Database
from controller.store import tokens

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    file = tmp_path / "controller.toml"
    file.write_text(f'database = "sqlite:///{tmp_path}/controller.db"\n')
    return file


def test_token_create_prints_a_working_secret_alone(settings_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["token", "create", "--role", "admin", "--config", str(settings_file)]) == 0
    assert run(["token", "create", "--role", "reader", "--name", "a", "--config", str(settings_file)]) == 0
    secrets = capsys.readouterr().out.splitlines()
    assert [(secret.startswith("cf_"), " " in secret) for secret in secrets] == [(True, False)] * 2


async def test_the_secret_is_in_force_and_its_expiry_kept(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/controller.db"
    command = [sys.executable, "-m", "controller", "token", "create", "--role", "operator", "--database", url]
    done = subprocess.run(  # noqa: ASYNC221 - nothing else runs on this loop
        [*command, "--name", "ansible", "--expires", "2999-01-02"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    async with Database(url) as db:
        found = await db.run(tokens.verify, done.stdout.strip())
    assert found is not None
    assert (found.name, found.role, str(found.expires_at)) == ("ansible", "operator", "2999-01-02 00:00:00+00:00")


def test_a_dry_run_makes_neither_database_nor_token(
    settings_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create = ["token", "create", "--role", "admin", "--name", "a", "--config", str(settings_file)]
    assert run(["migrate", "--dry-run", "--config", str(settings_file)]) == 0
    assert run([*create, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("Would apply: 0001_records")
    assert not (tmp_path / "controller.db").exists()
    assert run([*create, "--dry-run"]) == run(create) == 0
    assert run([*create, "--dry-run"]) == 1  # there is one of that name now
    capsys.readouterr()
    assert run(["migrate", "--dry-run", "--config", str(settings_file)]) == 0
    assert capsys.readouterr().out == "The database is up to date\n"


def test_migrate_says_what_it_applied_and_then_that_nothing_is_left(
    settings_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert run(["migrate", "--config", str(settings_file)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Applied: ")
    assert second == "The database is up to date"


def test_check_accepts_good_settings_and_creates_nothing(settings_file: Path) -> None:
    before = sorted(settings_file.parent.iterdir())
    assert run(["check", "--config", str(settings_file)]) == 0
    assert sorted(settings_file.parent.iterdir()) == before


@pytest.mark.parametrize("line", ['token_file = "/nonexistent"', 'databse = "x"', 'database = "sqlite:////no/such/x"'])
def test_check_refuses_settings_that_cannot_be_used(
    settings_file: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    settings_file.write_text(line + "\n")
    assert run(["check", "--config", str(settings_file)]) == 2
    assert capsys.readouterr().err.startswith("Error: ")


def test_show_config_prints_each_setting_with_its_source(
    settings_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["show-config", "--config", str(settings_file)]) == 0
    out = capsys.readouterr().out
    assert f"# {settings_file}" in out
    assert 'listen = "127.0.0.1:7700"  # default' in out


def test_check_names_a_directory_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--database", f"sqlite:///{tmp_path}/none/c.db"]) == 2
    assert f"there is no directory {tmp_path}/none" in capsys.readouterr().err


def test_a_wrong_command_line_exits_2_and_names_the_help_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["token", "create"]) == 2
    error = capsys.readouterr().err
    assert "--role" in error
    assert "See: coldframe-controller token create --help" in error


@pytest.mark.parametrize("arguments", [[], ["token"]])
def test_a_command_that_is_not_complete_shows_its_help(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(arguments) == 2
    assert "Commands:" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("coldframe-controller ")


@pytest.mark.parametrize("module", ["controller", "controller.cli"])
def test_another_package_called_agent_stops_the_start(tmp_path: Path, module: str) -> None:
    other = tmp_path / "agent"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('the other one was loaded')")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, {str(tmp_path)!r})\n"
        f"from {'controller.__main__' if module == 'controller' else module} import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code, "check"], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 1
    assert f"found in {other}" in done.stderr
