"""Health and facts."""

import pytest

from tests.agent.api.conftest import Host, Serving


async def test_health_is_open_and_reports_libvirt_and_the_hook_without_failing(host: Host, serving: Serving) -> None:
    healthy = await (await serving.stranger.get("/healthz")).json()
    assert (healthy["status"], healthy["libvirt_connected"], healthy["hook"]) == ("ok", True, "missing")
    host.hypervisor.connected = False
    host.hypervisor.fail()
    response = await serving.stranger.get("/healthz")
    assert response.status == 200
    assert (await response.json())["libvirt_connected"] is False


async def test_host_shows_facts_and_the_route_towards_a_controller(serving: Serving) -> None:
    facts = await serving.client.host("192.0.2.1")
    assert (facts.libvirt_version, facts.qemu_version) == ("9.0.0", "7.2.17")
    assert facts.route is not None
    assert (facts.route.destination, facts.route.source) == ("192.0.2.1", "192.0.2.7")
    assert (await serving.client.host()).route is None


async def test_host_answers_without_libvirt(host: Host, serving: Serving) -> None:
    host.hypervisor.fail()
    facts = await serving.client.host()
    assert facts.libvirt_version is None


@pytest.mark.parametrize("address", ["controller.example.org", "1.2.3", "fe80::1%25eth0", "x" * 65, ""])
async def test_a_controller_is_an_address(serving: Serving, address: str) -> None:
    assert (await serving.http.get(f"/v1/host?controller={address}")).status == 400


async def test_the_hook_is_told_where_the_state_directory_is(host: Host, serving: Serving) -> None:
    conf = host.root / "hooks" / "qemu.d" / "50-coldframe.conf"
    assert conf.read_text() == f"state_dir={host.config.state_dir}\n"


async def test_metrics_show_libvirt_and_transactions(serving: Serving) -> None:
    text = await (await serving.http.get("/metrics")).text()
    assert "coldframe_agent_libvirt_connected 1.0" in text
    assert "coldframe_agent_transactions_under_way 0.0" in text
