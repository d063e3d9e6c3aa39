"""What the agent notices while it serves."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest

from agent import app as agent_app
from agent import watchers
from agent.app import Agent
from agent.errors import StorageFailed
from agent.host.event_log import EventLog
from agent.host.hypervisor import Hypervisor
from agent.host.network import Network, NetworkChange
from agent.web import background
from tests.agent.api.conftest import VM, Host, make_host
from tests.agent.host.full_disk import full_file_system
from tests.agent.transactions.test_guard import mark_starting


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return make_host(tmp_path)


@pytest.fixture
async def agent(host: Host) -> AsyncIterator[Agent]:
    hypervisor, network = cast(Hypervisor, host.hypervisor), cast(Network, host.network)
    async with agent_app.working(host.config, hypervisor, network, hook_grace_s=0.3) as running:
        yield running


def note(host: Host, number: int, type: str) -> None:
    """Leave a note as the hook does."""
    spool = host.config.state_dir / "spool"
    spool.mkdir(parents=True, exist_ok=True)
    text = f"type={type}\nvm={VM}\nname=win11\nreason=shutdown\nat=2026-11-02T09:30:00.000000Z\n"
    (spool / f".{number}.new").write_text(text)
    (spool / f".{number}.new").rename(spool / f"{number:020}")


def types(agent: Agent) -> list[tuple[str, str]]:
    return [(one.type, one.source) for one in agent.event_log.read(0).items]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.case("B13")
async def test_what_the_hook_left_while_the_agent_was_dead_is_logged_before_it_serves(host: Host) -> None:
    for number, kind in enumerate(("vm.starting", "vm.started", "vm.stopped"), start=1):
        note(host, number, kind)
    hypervisor, network = cast(Hypervisor, host.hypervisor), cast(Network, host.network)
    async with agent_app.working(host.config, hypervisor, network) as agent:
        assert types(agent) == [("vm.starting", "hook"), ("vm.started", "hook"), ("vm.stopped", "hook")]
    async with agent_app.working(host.config, hypervisor, network) as agent:
        assert len(types(agent)) == 3


async def test_a_note_is_logged_soon_and_the_files_that_must_exist_are_kept(host: Host, agent: Agent) -> None:
    note(host, 1, "vm.stopped")
    await until(lambda: ("vm.stopped", "hook") in types(agent))
    kept = host.config.state_dir / "expected" / str(VM)
    await until(kept.exists)
    assert f"tpm={host.config.swtpm_dir / str(VM)}" in kept.read_text()


async def test_definitions_are_logged_from_libvirt(host: Host, agent: Agent) -> None:
    await until(lambda: bool(host.hypervisor._listeners))
    host.hypervisor.tell("defined", host.domain)
    host.hypervisor.tell("renamed", host.domain, old_name="old")
    host.hypervisor.tell("undefined", host.domain)
    await until(lambda: len(types(agent)) == 3)
    assert types(agent) == [("vm.defined", "libvirt"), ("vm.renamed", "libvirt"), ("vm.undefined", "libvirt")]
    assert agent.event_log.read(0).items[1].data == {"old_name": "old"}


async def test_a_stop_that_the_hook_did_not_tell_of_is_logged_from_libvirt(host: Host, agent: Agent) -> None:
    await until(lambda: bool(host.hypervisor._listeners))
    host.hypervisor.tell("stopped", host.domain)
    await until(lambda: types(agent) == [("vm.stopped", "libvirt")])


async def test_a_stop_that_the_hook_told_of_is_logged_once(host: Host, agent: Agent) -> None:
    await until(lambda: bool(host.hypervisor._listeners))
    note(host, 1, "vm.stopped")
    host.hypervisor.tell("stopped", host.domain)
    host.hypervisor.tell("started", host.domain)  # decided after the stop, and the hook told nothing of it
    await until(lambda: len(types(agent)) == 2)
    assert types(agent) == [("vm.stopped", "hook"), ("vm.started", "libvirt")]


async def test_a_change_of_the_network_is_logged(host: Host, agent: Agent) -> None:
    host.network.change(NetworkChange("host.address", {"added": ["eth0 192.0.2.9/24"], "removed": []}))
    await until(lambda: types(agent) == [("host.address", "network")])


async def test_domains_are_looked_at_again_when_libvirt_is_back(host: Host, agent: Agent) -> None:
    kept = host.config.state_dir / "expected" / str(VM)
    await until(kept.exists)
    kept.unlink()
    host.hypervisor.reconnect()
    await until(kept.exists)


@pytest.mark.parametrize(
    ("running", "logged", "added"),
    [
        (False, "vm.started", [("vm.stopped", "libvirt")]),
        (True, "vm.stopped", [("vm.started", "libvirt")]),
        (False, "vm.stopped", []),
        (False, "vm.starting", [("vm.stopped", "libvirt")]),
        (True, "vm.starting", [("vm.started", "libvirt")]),
    ],
)
async def test_a_start_or_stop_that_nobody_could_tell_of_is_found_when_libvirt_is_looked_at(
    host: Host, running: bool, logged: str, added: list[tuple[str, str]]
) -> None:
    hypervisor, network = cast(Hypervisor, host.hypervisor), cast(Network, host.network)
    note(host, 1, logged)
    host.domain.state = "running" if running else "shut-off"
    async with agent_app.working(host.config, hypervisor, network) as agent:
        await until(lambda: len(types(agent)) > len(added))
        await until(lambda: bool(host.hypervisor._listeners))
        host.hypervisor.reconnect()  # looks again, and finds all told
        host.hypervisor.tell("defined", host.domain)
        await until(lambda: ("vm.defined", "libvirt") in types(agent))
        assert types(agent) == [(logged, "hook"), *added, ("vm.defined", "libvirt")]


async def test_of_a_vm_that_is_starting_nothing_is_logged_but_how_it_ends(host: Host) -> None:
    hypervisor, network = cast(Hypervisor, host.hypervisor), cast(Network, host.network)
    note(host, 1, "vm.starting")
    (host.config.state_dir / "starting").mkdir()
    mark_starting(host.config.state_dir, os.getpid(), vm=host.domain.uuid)
    async with agent_app.working(host.config, hypervisor, network) as agent:
        await until(lambda: bool(host.hypervisor._listeners))
        for _ in range(2):
            host.hypervisor.reconnect()
            host.hypervisor.tell("defined", host.domain)
            await until(lambda: ("vm.defined", "libvirt") in types(agent))
        assert [one for one in types(agent) if one[0] != "vm.defined"] == [("vm.starting", "hook")]


def fill_up(state_dir: Path, log: EventLog) -> None:
    """Take all room there is, the rest of the log's last page too."""
    with contextlib.suppress(OSError), (state_dir / "filling").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    with contextlib.suppress(StorageFailed):
        while True:
            log.append("vm.renamed", "libvirt")


@pytest.mark.case("F5")
@pytest.mark.case("B8")
async def test_what_happens_while_the_disk_is_full_is_logged_once_when_there_is_room(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchers, "APPEND_AGAIN_S", 0.05)
    hypervisor, network = cast(Hypervisor, host.hypervisor), cast(Network, host.network)
    host.config.state_dir.mkdir(mode=0o700)
    with full_file_system(host.config.state_dir, "1m") as release:
        async with agent_app.working(host.config, hypervisor, network, hook_grace_s=0.05) as agent:
            await until(lambda: bool(host.hypervisor._listeners))
            await asyncio.to_thread(fill_up, host.config.state_dir, agent.event_log)
            host.hypervisor.tell("stopped", host.domain)  # the hook could write no note
            host.hypervisor.tell("defined", host.domain)
            host.network.change(NetworkChange("host.address", {"added": [], "removed": []}))
            await until(lambda: caplog.text.count("event-waits") > 3)
            release()
            wanted = {("vm.stopped", "libvirt"), ("vm.defined", "libvirt"), ("host.address", "network")}
            await until(lambda: wanted <= set(types(agent)))
            assert sorted(one for one in types(agent) if one[0] != "vm.renamed") == sorted(wanted)


@pytest.mark.case("B13")
@pytest.mark.case("F5")
async def test_an_agent_that_finds_its_disk_full_serves_and_works_the_notes_off_when_there_is_room(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE_S", 0.05)
    hypervisor, network = cast(Hypervisor, host.hypervisor), cast(Network, host.network)
    host.config.state_dir.mkdir(mode=0o700)
    with full_file_system(host.config.state_dir, "1m") as release:
        async with agent_app.working(host.config, hypervisor, network) as agent:
            note(host, 1, "vm.stopped")
            await until(lambda: types(agent) == [("vm.stopped", "hook")])
            note(host, 2, "vm.started")
            (host.config.state_dir / "spool" / f"{2:020}").rename(host.config.state_dir / "held")
            await asyncio.to_thread(fill_up, host.config.state_dir, agent.event_log)
        (host.config.state_dir / "held").rename(host.config.state_dir / "spool" / f"{2:020}")
        async with agent_app.working(host.config, hypervisor, network) as agent:
            assert ("vm.started", "hook") not in types(agent)
            release()
            await until(lambda: ("vm.started", "hook") in types(agent))
            await until(lambda: not list((host.config.state_dir / "spool").glob("0*")))
            assert types(agent).count(("vm.started", "hook")) == 1
