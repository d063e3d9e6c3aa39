"""The lab runs our daemons as an installation would."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.daemons import AgentDaemon, ControllerDaemon, healthy
from tests.lab.errors import LabError
from tests.lab.fixtures import GuestFactory
from tests.lab.host import LabHost

pytestmark = pytest.mark.real


@pytest.fixture
def agent(lab_host: LabHost) -> Iterator[AgentDaemon]:
    with AgentDaemon(lab_host) as agent:
        yield agent


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[ControllerDaemon]:
    with ControllerDaemon(tmp_path / "controller") as controller:
        yield controller


def test_a_controller_keeps_its_token_over_a_crash(controller: ControllerDaemon) -> None:
    token = controller.token
    assert controller.json("host", "list") == {"items": []}
    controller.kill()
    assert not healthy(controller.connection())
    controller.start()
    assert controller.token == token
    assert controller.json("host", "list") == {"items": []}


def test_a_controller_in_a_hosts_network_is_reached_from_inside(lab_host: LabHost, tmp_path: Path) -> None:
    with ControllerDaemon(tmp_path / "controller", lab_host) as controller:
        assert controller.json("host", "list") == {"items": []}


def test_a_daemon_that_refuses_its_settings_is_told_with_its_log(tmp_path: Path) -> None:
    controller = ControllerDaemon(tmp_path / "controller", no_such_key=1)
    with pytest.raises(LabError, match="no_such_key"), controller:
        pass


def test_an_agent_comes_back_after_a_crash(agent: AgentDaemon) -> None:
    assert healthy(agent.connection())
    agent.kill()
    assert not healthy(agent.connection())
    agent.start()
    assert healthy(agent.connection())


def test_a_controller_sees_the_guests_of_an_agent(
    agent: AgentDaemon, controller: ControllerDaemon, guest: GuestFactory
) -> None:
    vm = guest("seen", disks=1, tpm=False)
    controller.add_host(agent)
    assert [row["name"] for row in controller.json("host", "list")["items"]] == [agent.host.name]
    assert controller.json("vm", "show", "seen")["uuid"] == str(vm.uuid)
