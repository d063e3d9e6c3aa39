"""The event log over HTTP."""

import asyncio

import pytest

from agent.web.application import STOPPING
from tests.agent.api.conftest import VM, Serving


async def test_events_are_read_after_a_number(serving: Serving) -> None:
    for kind in ("vm.started", "vm.stopped"):
        serving.agent.event_log.append(kind, "hook", VM, "win11")
    everything = await serving.client.events(0)
    assert [one.type for one in everything.items][-2:] == ["vm.started", "vm.stopped"]
    assert everything.next == everything.items[-1].seq
    assert (await serving.client.events(everything.next)).items == []


async def test_a_long_poll_ends_with_the_event(serving: Serving) -> None:
    waiting = asyncio.create_task(serving.client.events(serving.agent.event_log.last_seq, wait_s=20))
    while not serving.agent.event_log._waiters:
        await asyncio.sleep(0)
    serving.agent.event_log.append("vm.stopped", "hook", VM, "win11")
    assert [one.type for one in (await waiting).items] == ["vm.stopped"]


async def test_a_long_poll_ends_when_the_agent_stops(serving: Serving) -> None:
    waiting = asyncio.create_task(serving.client.events(serving.agent.event_log.last_seq, wait_s=20))
    while not serving.agent.event_log._waiters:
        await asyncio.sleep(0)
    serving.app[STOPPING].set()
    assert (await waiting).items == []


@pytest.mark.parametrize("query", ["after=-1", "after=x", "wait=-1", "wait=nan", "wait=1e9", "limit=0", "aftr=1"])
async def test_a_wrong_query_is_refused(serving: Serving, query: str) -> None:
    assert (await serving.http.get(f"/v1/events?{query}")).status == 400


async def test_a_cursor_from_another_log_is_brought_back(serving: Serving) -> None:
    found = await serving.client.events(2**62)
    assert found.items == []
    assert found.next <= serving.agent.event_log.last_seq
