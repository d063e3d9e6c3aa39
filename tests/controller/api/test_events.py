import asyncio
import json
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from agent.web.application import build
from controller.api.events import EventRoutes, StreamLimits
from controller.auth import authenticator
from controller.db import Database, write
from controller.store import events, tokens
from tests.controller.api.conftest import Api, Client


async def append(db: Database, count: int, size_bytes: int = 0) -> None:
    def work() -> None:
        with write():
            for _ in range(count):
                events.append("test", data={"filler": "x" * size_bytes})

    await db.run(work)


def parse(text: str) -> list[dict[str, Any]]:
    """Return each message of a stream as its fields."""
    return [
        {name: value.strip() for name, _, value in (line.partition(":") for line in block.splitlines()) if name}
        for block in text.split("\n\n")
        if block.strip() and not block.startswith(":")
    ]


async def message(answer: ClientResponse) -> str:
    return (await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 20)).decode()


def ids(text: str) -> list[int]:
    return [int(one["id"]) for one in parse(text) if "id" in one]


def serve(db: Database, **limits: Any) -> Client:
    routes = EventRoutes(db, authenticator(db, None), StreamLimits(**limits)).routes()
    app: web.Application = build(routes, title="t", version="1", authenticator=authenticator(db, None))
    return TestClient(TestServer(app))


async def credential(db: Database) -> tuple[dict[str, str], Any]:
    made = await db.run(tokens.create, "listener", "reader")
    return {"Authorization": f"Bearer {made.secret}"}, made.token.uuid


async def test_without_following_the_events_that_are_there_come_in_order_and_the_stream_ends(
    db: Database, api: Api
) -> None:
    await append(db, 450)
    answer = await api.get("/v1/events?follow=false&after=3")
    found = parse(await answer.text())
    assert answer.content_type == "text/event-stream"
    assert [int(one["id"]) for one in found] == list(range(4, 454))
    event = json.loads(found[-1]["data"])
    assert (event["seq"], event["type"], found[-1]["event"]) == (453, "test", "test")


async def test_a_listener_hears_what_happens_and_goes_on_from_its_last_id(db: Database, api: Api) -> None:
    answer = await api.get("/v1/events?after=3")
    await append(db, 1)
    assert ids(await message(answer)) == [4]
    answer.close()
    await append(db, 2)
    again = await api.get("/v1/events?after=1", headers={"Last-Event-ID": "4"})
    assert ids(await message(again)) + ids(await message(again)) == [5, 6]
    again.close()


@pytest.mark.parametrize("bad", ["x", "-1", "1.5", "9" * 19, "\u0661"])
async def test_a_last_id_that_is_none_is_refused(api: Api, bad: str) -> None:
    assert await api.code("GET", "/v1/events", headers={"Last-Event-ID": bad}) == (400, "invalid-request")


async def test_asking_for_the_headers_alone_does_not_stream(api: Api) -> None:
    answer = await asyncio.wait_for(api.call("HEAD", "/v1/events"), 10)
    assert answer.status == 200


async def test_who_asks_for_events_that_are_gone_is_told_so_first(db: Database, api: Api) -> None:
    await append(db, 20)
    await db.run(events.trim, 5)
    found = parse(await (await api.get("/v1/events?follow=false&after=2")).text())
    assert (found[0]["event"], json.loads(found[0]["data"])["data"]) == ("events.trimmed", {"oldest": 19})
    assert [one["id"] for one in found[1:]] == ["19", "20", "21", "22", "23"]


async def test_a_listener_that_stays_behind_is_dropped_and_told_where_to_go_on(db: Database) -> None:
    headers, _ = await credential(db)
    async with serve(db, backlog=300, lag_s=0) as client:
        answer = await client.get("/v1/events", headers=headers)
        assert ids(await message(answer)) == [1]
        await append(db, 600, 10_000)
        found = parse(await asyncio.wait_for(answer.text(), 20))
    told = json.loads(found[-1]["data"])
    assert (told["type"], "id" in found[-1]) == ("listener.dropped", False)
    assert told["data"] == {"behind": 400, "go_on_after": 201}
    assert [int(one["id"]) for one in found[:-1]] == list(range(2, 202))


async def test_a_burst_does_not_drop_a_listener_that_keeps_up(db: Database) -> None:
    headers, _ = await credential(db)
    async with serve(db, backlog=300) as client:
        answer = await client.get("/v1/events", headers=headers)
        assert ids(await message(answer)) == [1]
        await append(db, 1000)
        assert [ids(await message(answer)) for _ in range(1000)] == [[number] for number in range(2, 1002)]
        answer.close()


async def test_a_listener_that_takes_nothing_is_cut_off(db: Database) -> None:
    headers, _ = await credential(db)
    await append(db, 400, 100_000)
    async with serve(db, stuck_s=0.05) as client:
        host, port = client.host, client.port
        reader, writer = await asyncio.open_connection(host, port, limit=1024)
        request = f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: {headers['Authorization']}\r\n\r\n"
        writer.write(request.encode())
        await writer.drain()
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        runner = client.server.runner
        assert runner is not None
        assert runner.server is not None
        async with asyncio.timeout(20):
            while runner.server.connections:
                await asyncio.sleep(0)
        # What was on its way still comes, and after it the end.
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(400 * 100_000)
        writer.close()


async def test_a_quiet_stream_shows_that_it_lives_and_ends_when_the_token_is_revoked(db: Database) -> None:
    headers, uuid = await credential(db)
    async with serve(db, heartbeat_s=0.05) as client:
        answer = await client.get("/v1/events?after=1", headers=headers)
        assert await message(answer) == ": still here\n\n"
        await db.run(tokens.revoke, uuid)
        rest = await asyncio.wait_for(answer.text(), 10)
    assert ids(rest) in ([], [2])
