"""The order in which an agent starts, and what it does with what a dead one left."""

from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest

from agent import app as agent_app
from agent.errors import HypervisorUnavailable, StateDirInUse
from agent.host.hypervisor import Hypervisor
from agent.host.network import Network
from agent.wire.transaction import SnapshotRequest
from tests.agent.api.conftest import VM, Host, make_host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return make_host(tmp_path)


def outside(host: Host) -> tuple[Hypervisor, Network]:
    return cast(Hypervisor, host.hypervisor), cast(Network, host.network)


async def test_what_a_dead_agent_had_prepared_is_undone_before_the_next_one_serves(host: Host) -> None:
    before = sorted(path.name for path in (host.root / "images").iterdir())
    transaction = uuid4()
    async with agent_app.working(host.config, *outside(host)) as agent:
        await agent.manager.put(transaction, SnapshotRequest(vm=VM, snapshot=uuid4()))
        assert agent.guards.get(VM) is not None
    async with agent_app.working(host.config, *outside(host)) as agent:
        assert agent.manager.get(transaction).state == "aborted"
        assert agent.guards.get(VM) is None
        assert sorted(path.name for path in (host.root / "images").iterdir()) == before


async def test_a_second_agent_on_the_same_state_changes_nothing(host: Host) -> None:
    async with agent_app.working(host.config, *outside(host)):
        with pytest.raises(StateDirInUse):
            async with agent_app.working(host.config, *outside(host)):
                pytest.fail("both work")


async def test_an_agent_starts_without_libvirt_and_without_hooks(host: Host) -> None:
    host.hypervisor.fail()
    (host.root / "hooks" / "qemu.d").rmdir()
    async with agent_app.working(host.config, *outside(host)) as agent:
        assert (await agent.facts.health()).hook == "missing"
        with pytest.raises(HypervisorUnavailable):
            await agent.inventory.vms()
        host.hypervisor.failure = None
        assert len(await agent.inventory.vms()) == 1


async def test_a_hook_directory_that_cannot_be_written_does_not_keep_the_agent_from_serving(host: Host) -> None:
    conf = host.root / "hooks" / "qemu.d" / "50-coldframe.conf"
    conf.mkdir()
    async with agent_app.working(host.config, *outside(host)) as agent:
        assert len(await agent.inventory.vms()) == 1
