"""One controller works with a host: whoever comes second may look, and changes nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import pytest

from agent.client import AgentClient, AgentProblem
from agent.keeper import CONTROLLER, UNKNOWN, Keepers
from agent.web.application import ROUTES
from agent.wire.transaction import SnapshotRequest
from tests.agent.api.conftest import TOKEN, VM, Serving

ONE, OTHER = UUID(int=1), UUID(int=2)
Of = Callable[[UUID], AgentClient]


@pytest.fixture
async def of(serving: Serving) -> AsyncIterator[Of]:
    """Clients of controllers by their UUIDs."""
    async with AsyncExitStack() as stack:
        made = {
            uuid: await stack.enter_async_context(AgentClient(serving.url, TOKEN, controller=uuid))
            for uuid in (ONE, OTHER)
        }
        yield made.__getitem__


@pytest.fixture
def keepers(serving: Serving) -> Keepers:
    return serving.agent.keepers


async def begin(client: AgentClient) -> UUID:
    id_ = uuid4()
    await client.put_transaction(id_, SnapshotRequest(vm=VM, snapshot=uuid4()))
    return id_


async def test_the_first_controller_that_changes_something_keeps_the_host(serving: Serving, of: Of) -> None:
    assert (await of(OTHER).host()).keeper is None
    id_ = await begin(of(ONE))
    keeper = (await of(OTHER).host()).keeper
    assert keeper is not None
    assert keeper.controller == ONE
    for refused in (of(OTHER).commit, of(OTHER).abort, of(OTHER).renew, of(OTHER).release):
        with pytest.raises(AgentProblem) as caught:
            await refused(id_)
        assert caught.value.answer.code == "controller-refused"
        assert str(ONE) in caught.value.answer.detail
    assert (await of(OTHER).transaction(id_)).state == "prepared"
    assert (await of(ONE).commit(id_)).state == "committed"
    with pytest.raises(AgentProblem, match="forget-controller"):
        await begin(of(OTHER))


async def test_of_controllers_that_come_at_once_one_keeps_the_host(of: Of, keepers: Keepers) -> None:
    tried = await asyncio.gather(begin(of(ONE)), begin(of(OTHER)), return_exceptions=True)
    (refused,) = [one for one in tried if isinstance(one, AgentProblem)]
    keeper = keepers.get()
    assert keeper is not None
    assert (refused.answer.code, keeper.controller == ONE) == ("controller-refused", tried[0] is not refused)


async def test_an_operator_without_a_controller_is_let_through(serving: Serving, of: Of) -> None:
    id_ = await begin(of(ONE))
    assert (await serving.client.abort(id_)).state == "aborted"


async def test_a_dry_run_of_another_controller_says_that_it_would_be_refused(of: Of, keepers: Keepers) -> None:
    request = SnapshotRequest(vm=VM, snapshot=uuid4())
    assert (await of(OTHER).plan_transaction(uuid4(), request)).refusals == []
    assert keepers.get() is None
    await begin(of(ONE))
    assert [one.code for one in (await of(OTHER).plan_transaction(uuid4(), request)).refusals] == ["controller-refused"]


async def test_a_host_that_was_given_up_goes_to_the_next(of: Of, keepers: Keepers) -> None:
    id_ = await begin(of(ONE))
    held = keepers.forget()
    assert held is not None
    assert held.controller == ONE
    assert (await of(OTHER).abort(id_)).state == "aborted"
    with pytest.raises(AgentProblem, match=str(OTHER)):
        await begin(of(ONE))


async def test_a_mark_that_cannot_be_read_is_nobodys_until_it_is_forgotten(serving: Serving, of: Of) -> None:
    keepers = Keepers(serving.agent.manager.tools.limits.state_dir)
    (serving.agent.manager.tools.limits.state_dir / "controller").write_text("torn")
    with pytest.raises(AgentProblem, match=str(UNKNOWN)):
        await begin(of(ONE))
    keepers.forget()
    await begin(of(ONE))


async def test_a_name_that_is_no_uuid_is_refused(serving: Serving) -> None:
    async with serving.http.post(f"/v1/vms/{VM}/release", headers={CONTROLLER.name: "me"}) as answer:
        assert answer.status == 400


def test_every_route_that_changes_something_is_kept_to_one_controller(serving: Serving) -> None:
    loose = [one.name for one in serving.app[ROUTES] if one.changes and CONTROLLER not in one.headers]
    assert loose == []
