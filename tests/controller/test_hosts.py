"""Reaching an enrolled agent elsewhere, while work on its host is under way."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import peewee
import pytest
from aiohttp.test_utils import TestServer

from agent.web.checkpoint import no_checkpoint
from agent.web.errors import InvalidRequest, PreconditionFailed
from agent.wire.fleet import AddHost, ChangeHost
from controller.errors import AgentRefusedToken, DatabaseFailed, HostIsAnother, HostNotFound, HostUnreachable
from controller.models import database
from controller.store import events, hosts
from tests.controller.fake_agent import TOKEN, FakeAgent
from tests.controller.world import HOST, OTHER, World


@asynccontextmanager
async def listening(agent: FakeAgent) -> AsyncIterator[str]:
    """Serve an agent at one more address."""
    server = TestServer(agent.app())
    await server.start_server()
    yield str(server.make_url("")).rstrip("/")
    await server.close()


async def reached(one: World) -> tuple[str, str, str | None]:
    """Return how the host is reached."""
    found = await one.db.run(hosts.endpoint, HOST)
    return found.url, found.token.reveal(), found.fingerprint


def elsewhere(one: World) -> str:
    """Return another address of the host's agent."""
    return one.hosts.client(HOST).url.replace("127.0.0.1", "localhost")


async def change(one: World, **body: Any) -> Any:
    return await one.hosts.change(HOST, ChangeHost(**body), lambda: None)


@pytest.mark.case("P7")
async def test_work_that_waits_for_a_lost_host_goes_on_at_its_new_address(one: World) -> None:
    before = await one.db.run(hosts.get, HOST)
    await one.snapshot(name="first")
    commit = one.agent.calls.index("POST /v1/transactions/{id}/commit")
    one.agent.calls.clear()
    lost = asyncio.Event()

    async def lose(number: int, _: str) -> None:
        one.agent.dead = number > commit and not lost.is_set()
        if one.agent.dead:
            lost.set()

    one.agent.faults[commit] = "drop-after"
    one.agent.on_call = lose
    async with listening(one.agent) as url:
        making = asyncio.create_task(one.create(name="second"))
        await lost.wait()
        one.agent.on_call, one.agent.dead = None, False
        after = await change(one, url=url)
        assert (await making).state == "succeeded"
        assert after.url == url
        await change(one, url=before.url)
    told = [event.data["url"] for event in await one.db.run(events.read, 0, 99) if event.type == "host.changed"]
    assert told == [url, before.url]


async def test_another_agent_at_the_new_address_is_refused(one: World) -> None:
    before = await reached(one)
    await one.db.run(hosts.move_cursor, HOST, one.agent.log, 3)
    stranger = FakeAgent()
    stranger.log = uuid4()
    async with listening(stranger) as url:
        with pytest.raises(HostIsAnother, match=HOST):
            await change(one, url=url)
    assert await reached(one) == before
    assert await one.snapshot()


def lose_the_answer(one: World, of: str) -> None:
    """Have the database take this commit and fail all the same, and then every question, until it is mended."""
    real = database.obj

    def refuse(sql: str, params: Any = None) -> Any:
        raise peewee.OperationalError("the connection was lost")

    def checkpoint(point: str) -> None:
        if point == f"after database {of}":
            real.checkpoint, real.execute_sql = no_checkpoint, refuse
            raise peewee.OperationalError("the connection was lost")

    real.checkpoint = checkpoint


async def mend(one: World) -> None:
    """Have the database answer again, and the hosts aligned by what the controller keeps going for that."""
    del database.obj.execute_sql
    aligning = asyncio.create_task(one.hosts.keep_aligned())
    while one.hosts._in_doubt.is_set():
        await asyncio.sleep(0.001)
    aligning.cancel()


@pytest.fixture
async def followed(one: World) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """The follower of each host that was begun last."""
    begun: dict[str, asyncio.Task[None]] = {}

    def follow(name: str) -> "asyncio.Task[None]":
        begun[name] = asyncio.create_task(asyncio.sleep(3600))
        return begun[name]

    one.hosts.start_following(follow)
    yield begun
    await one.hosts.stop_following()


@pytest.mark.case("F2")
async def test_a_host_whose_enrolment_was_taken_and_not_confirmed_is_reached_and_followed(
    one: World, followed: dict[str, asyncio.Task[None]]
) -> None:
    lose_the_answer(one, "hosts._enroll")
    with pytest.raises(DatabaseFailed):
        await one.hosts.add(AddHost(name=OTHER, url=elsewhere(one), agent_token=TOKEN))
    await mend(one)
    assert await one.hosts.client(OTHER).host() == one.agent.facts
    assert not followed[OTHER].done()
    assert not followed[HOST].done()


@pytest.mark.case("F2")
async def test_a_host_whose_change_was_taken_and_not_confirmed_is_reached_as_recorded(
    one: World, followed: dict[str, asyncio.Task[None]]
) -> None:
    url = elsewhere(one)
    lose_the_answer(one, "store.hosts.change")
    with pytest.raises(DatabaseFailed):
        await change(one, url=url, name="new")
    await mend(one)
    assert (one.hosts.client("new").url, followed["new"].done(), followed[HOST].done()) == (url, False, True)
    with pytest.raises(HostNotFound):
        one.hosts.client(HOST)
    await one.hosts.change("new", ChangeHost(name=HOST), lambda: None)


@pytest.mark.case("F2")
async def test_a_host_whose_removal_was_taken_and_not_confirmed_is_let_go(
    one: World, followed: dict[str, asyncio.Task[None]]
) -> None:
    await one.hosts.add(AddHost(name=OTHER, url=elsewhere(one), agent_token=TOKEN))
    lose_the_answer(one, "store.hosts.remove")
    with pytest.raises(DatabaseFailed):
        await one.hosts.remove(OTHER)
    await mend(one)
    with pytest.raises(HostNotFound):
        one.hosts.client(OTHER)
    assert followed[OTHER].done()


async def test_other_hosts_go_on_as_they_are_while_one_is_taken_in(
    one: World, followed: dict[str, asyncio.Task[None]]
) -> None:
    before = followed[HOST]
    await one.hosts.client(HOST).host()
    session = one.hosts.client(HOST)._session
    await one.hosts.add(AddHost(name=OTHER, url=elsewhere(one), agent_token=TOKEN))
    assert followed[HOST] is before
    assert one.hosts.client(HOST)._session is session
    await one.hosts.remove(OTHER)


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ({"url": "ftp://kvm1"}, InvalidRequest),
        ({"url": "http://127.0.0.1:1"}, HostUnreachable),
        ({"agent_token": "wrong"}, AgentRefusedToken),
        ({"fingerprint": "no hex"}, InvalidRequest),
    ],
)
async def test_what_does_not_reach_the_agent_changes_nothing(
    one: World, body: dict[str, str], refusal: type[Exception]
) -> None:
    before = await reached(one)
    with pytest.raises(refusal):
        await change(one, **body)
    assert await reached(one) == before
    assert await one.snapshot()


async def test_a_change_that_the_caller_may_not_make_asks_nobody(one: World) -> None:
    def refuse() -> None:
        raise PreconditionFailed(what="Host", found="a", expected="b")

    with pytest.raises(PreconditionFailed):
        await one.hosts.change(HOST, ChangeHost(url="http://127.0.0.1:1"), refuse)


async def test_a_renamed_host_is_followed_under_its_new_name(one: World) -> None:
    followed: list[str] = []

    def follow(name: str) -> "asyncio.Task[None]":
        followed.append(name)
        return asyncio.create_task(asyncio.sleep(3600))

    one.hosts.start_following(follow)
    await change(one, name="new")
    assert followed == [HOST, "new"]
    assert (await one.hosts.client("new").host()) == one.agent.facts
    await one.hosts.change("new", ChangeHost(name=HOST), lambda: None)
    await one.hosts.stop_following()


async def test_a_host_that_is_renamed_while_work_gives_up_on_it_has_one_follower(one: World) -> None:
    followers: dict[str, list[asyncio.Task[None]]] = {}
    may_end = asyncio.Event()

    async def follow() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await may_end.wait()  # its last word takes a while

    def begin(name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(follow())
        followers.setdefault(name, []).append(task)
        return task

    def let_it_end(point: str) -> None:
        if point == "before database store.hosts.change":
            loop.call_soon_threadsafe(may_end.set)
            given_up.wait(5)

    loop, given_up = asyncio.get_running_loop(), threading.Event()
    one.hosts.start_following(begin)
    await asyncio.sleep(0)
    giving_up = asyncio.create_task(one.hosts.did_not_answer(HOST, "it is gone"))
    giving_up.add_done_callback(lambda _: given_up.set())
    while not followers[HOST][0].cancelling():
        await asyncio.sleep(0)
    database.obj.checkpoint = let_it_end
    await change(one, name="new")
    await giving_up
    running = {name: [task for task in tasks if not task.done()] for name, tasks in followers.items()}
    assert {name: len(tasks) for name, tasks in running.items()} == {HOST: 0, "new": 1}
    await one.hosts.change("new", ChangeHost(name=HOST), lambda: None)
    await one.hosts.stop_following()
