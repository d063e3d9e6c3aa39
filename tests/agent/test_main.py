"""The command, as a process. libvirt's own test driver stands for a hypervisor; it needs no daemon."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agent.__main__ import transaction_lines
from agent.client import AgentClient
from agent.transactions.guard import Guards
from agent.wire.transaction import Transaction

VM = UUID("6695eb01-f6a4-8304-79aa-97f2502e193f")  # the domain "test" of test:///default
ENVIRONMENT = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text("secret")
    (tmp_path / "images").mkdir()
    hook = tmp_path / "hooks" / "qemu.d" / "50-coldframe"
    hook.parent.mkdir(parents=True)
    hook.write_bytes((Path(__file__).parents[2] / "hooks" / "qemu").read_bytes())
    hook.chmod(0o755)
    paths = {name: str(tmp_path / name) for name in ("state_dir", "socket", "nvram_dir", "swtpm_dir")}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in paths.items())
    file = tmp_path / "agent.toml"
    file.write_text(
        f"{text}listen = '127.0.0.1:0'\nlibvirt_uri = 'test:///default'\ntoken_file = '{tmp_path}/token'\n"
        f"allowed_image_dirs = ['{tmp_path}/images']\nhook_dir = '{tmp_path}/hooks'\n"
    )
    return file


def run(*arguments: str | Path, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent", *map(str, arguments)]
    environment = ENVIRONMENT | (environ or {})
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


@pytest.fixture
def daemon(config: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A daemon that listens, and its URL."""
    command = [sys.executable, "-m", "agent", "serve", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "url=unix" in line:
                break
        url = next(word for line in lines for word in line.split() if word.startswith("url=http"))
        yield process, url.removeprefix("url=")
        process.terminate()
        process.communicate(timeout=30)


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("coldframe-agent ")
    told = run("--help").stdout
    for command in ("serve", "check", "show-config", "transactions", "release", "accept-blank", "forget-controller"):
        assert command in told


def test_show_config_prints_what_is_in_force_and_where_it_is_from(config: Path) -> None:
    environ = {"COLDFRAME_AGENT_MAX_CHAIN_DEPTH": "7"}
    done = run("show-config", "--config", config, "--log-level", "debug", environ=environ)
    values = tomllib.loads(done.stdout)
    assert (values["max_chain_depth"], values["log_level"], values["libvirt_uri"]) == (7, "debug", "test:///default")
    assert f'libvirt_uri = "test:///default"  # {config}' in done.stdout
    assert "max_chain_depth = 7  # environment" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["show-config", "--config", "/nowhere.toml"], 2, "/nowhere.toml: cannot be read"),
        (["serve", "--listen", "192.0.2.1:1"], 1, "set tls_cert and tls_key"),
        (["serve", "--token-file", "/nowhere"], 2, "the secret cannot be read"),
        (["show-config", "--max-chain-depth", "deep"], 2, "--max-chain-depth: Expected `int`"),
        (["serve", "--nonsense"], 2, "No such option"),
    ],
)
def test_wrong_settings_end_the_command_with_one_line(arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_check_names_each_thing_and_exits_1_on_a_problem(config: Path) -> None:
    done = run("check", "--config", config)
    assert done.returncode == 0, done.stdout
    assert all(line.startswith("ok ") for line in done.stdout.splitlines())
    (config.parent / "token").chmod(0o644)
    (config.parent / "hooks" / "qemu.d" / "50-coldframe").chmod(0o644)
    done = run("check", "--config", config, "--json")
    assert done.returncode == 1
    found = {one["name"]: one for one in json.loads(done.stdout)["items"]}
    assert {name for name, one in found.items() if not one["ok"]} == {"token", "hook"}
    assert "chmod 600" in found["token"]["detail"]


@pytest.mark.case("X5")
async def test_the_daemon_serves_says_where_and_stops_on_sigterm(daemon: tuple[subprocess.Popen[str], str]) -> None:
    process, url = daemon
    async with AgentClient(url, "secret") as client:
        assert [vm.name for vm in await client.vms()] == ["test"]
    process.send_signal(signal.SIGTERM)
    _, rest = await asyncio.to_thread(process.communicate, timeout=30)
    assert process.returncode == 0
    assert "event=stopped" in rest
    assert "secret" not in rest.replace("secret-", "")


def test_a_second_daemon_on_the_same_state_is_refused(config: Path, daemon: object) -> None:
    done = run("serve", "--config", config, "--socket", config.parent / "other")
    assert done.returncode == 1
    assert "Another agent works on" in done.stderr


def test_operator_commands_ask_a_live_daemon(config: Path, daemon: object) -> None:
    Guards(config.parent / "state_dir").raise_guard(VM, "test", uuid4(), "snapshot")
    assert run("release", "test", "--config", config, "--dry-run").stdout == "would let the domain start again\n"
    assert Guards(config.parent / "state_dir").get(VM) is not None
    assert run("release", "test", "--config", config).stdout == "test may start again\n"
    assert Guards(config.parent / "state_dir").get(VM) is None
    assert run("accept-blank", str(VM), "--config", config).returncode == 0
    assert (config.parent / "state_dir" / "accept-blank" / str(VM)).exists()
    assert json.loads(run("transactions", "--config", config, "--json").stdout) == {"items": [], "next": None}


def test_the_list_of_transactions_cuts_no_id() -> None:
    one = Transaction.example()
    heading, line = transaction_lines([one])
    assert (heading.index("state"), line.split()[:4]) == (
        line.index(one.state),
        [str(one.id), one.kind, str(one.vm), one.state],
    )


def test_operator_commands_work_on_the_state_of_a_dead_daemon(config: Path) -> None:
    state_dir = config.parent / "state_dir"
    assert run("transactions", "--config", config).returncode == 0
    transaction = uuid4()
    Guards(state_dir).raise_guard(VM, "test", transaction, "snapshot")
    assert str(transaction) in run("release", "test", "--config", config).stdout
    assert Guards(state_dir).get(VM) is None
    assert run("release", "test", "--config", config).stdout == "test was not held\n"
    assert "would let the next start" in run("accept-blank", "test", "--config", config, "--dry-run").stdout
    assert not (state_dir / "accept-blank" / str(VM)).exists()
    assert run("accept-blank", "test", "--config", config).returncode == 0
    assert (state_dir / "accept-blank" / str(VM)).exists()
    assert "A VM called nobody does not exist" in run("release", "nobody", "--config", config).stderr


def test_forget_controller_lets_the_next_one_have_the_host(config: Path) -> None:
    mark = config.parent / "state_dir" / "controller"
    assert "no controller has worked" in run("forget-controller", "--config", config).stdout
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(f"controller={VM}\nsince=2026-11-02T09:30:00+00:00\n")
    assert str(VM) in run("forget-controller", "--config", config, "--dry-run").stdout
    assert mark.exists()
    assert str(VM) in run("forget-controller", "--config", config).stdout
    assert not mark.exists()
