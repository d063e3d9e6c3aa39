"""Domains over HTTP."""

from pathlib import Path
from uuid import uuid4

import pytest

from agent.client import AgentProblem
from agent.wire.transaction import SnapshotRequest
from tests.agent.api.conftest import VM, Host, Serving
from tests.agent.fakes import domain_xml


async def test_domains_are_listed_with_their_disks(serving: Serving) -> None:
    (vm,) = await serving.client.vms()
    assert (vm.uuid, vm.name, vm.state, vm.firmware, vm.tpm) == (VM, "win11", "shut-off", "uefi", "2.0")
    assert [disk.target for disk in await serving.client.disks(VM)] == ["vda", "vdb"]
    assert await serving.client.vm(VM) == vm


async def test_many_domains_come_in_pages_and_the_client_follows_them(host: Host, serving: Serving) -> None:
    for number in range(5):
        host.hypervisor.add(domain_xml(name=f"vm{number}"))
    page = await (await serving.http.get("/v1/vms?limit=4")).json()
    assert len(page["items"]) == 4
    rest = await (await serving.http.get(f"/v1/vms?limit=4&after={page['next']}")).json()
    assert (len(rest["items"]), rest["next"]) == (2, None)
    assert len(await serving.client.vms()) == 6


async def test_an_unknown_domain_is_a_problem_that_names_it(serving: Serving) -> None:
    uuid = uuid4()
    for call in (serving.client.vm, serving.client.disks, serving.client.host_files):
        with pytest.raises(AgentProblem, match=str(uuid)) as caught:
            await call(uuid)
        assert caught.value.problem().code == "domain-not-found"


async def test_libvirt_that_is_away_is_a_problem_with_its_reason(host: Host, serving: Serving) -> None:
    host.hypervisor.fail("the socket is gone")
    response = await serving.http.get("/v1/vms")
    problem = await response.json()
    assert (response.status, problem["code"]) == (503, "hypervisor-unavailable")
    assert "the socket is gone" in problem["detail"]


async def test_release_undoes_what_is_prepared_and_the_domain_may_start(host: Host, serving: Serving) -> None:
    txn = uuid4()
    await serving.client.put_transaction(txn, SnapshotRequest(vm=VM, snapshot=uuid4()))
    assert (await serving.client.vm(VM)).guard is not None
    released = await serving.client.release(VM)
    assert released.guard is None
    assert (await serving.client.transaction(txn)).state == "aborted"


async def test_release_removes_a_guard_that_nobody_owns(host: Host, serving: Serving) -> None:
    serving.agent.guards.raise_guard(VM, "win11", uuid4(), "snapshot")
    assert (await serving.client.release(VM)).guard is None


async def test_accept_blank_leaves_the_mark_that_the_hook_looks_for(host: Host, serving: Serving) -> None:
    await serving.client.accept_blank(VM)
    assert Path(host.config.state_dir, "accept-blank", str(VM)).exists()
