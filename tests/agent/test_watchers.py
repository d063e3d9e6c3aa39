"""What the agent notices while it serves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest

from agent import app as agent_app
from agent.app import Agent
from agent.host.hypervisor import Hypervisor
from agent.host.network import Network, NetworkChange
from tests.agent.api.conftest import VM, Host, make_host


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
