"""Those who only hold connections open take nothing from those who ask."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from agent.web import connections, serving
from agent.web.application import CONNECTIONS, STOPPING, build
from agent.web.auth import Secret, one_secret
from agent.web.call import Call
from agent.web.routes import route
from agent.web.serving import Tls
from tests.agent.web.test_serving import tls as tls  # noqa: PLC0414 - a fixture
from tests.lab.daemons import UnixConnection, healthy

LIMIT = 8
HTTP_BEGUN = b"GET /healthz HTTP/1.1\r\nHost: h\r\n"
TLS_BEGUN = b"\x16\x03\x01\x02\x00\x01"  # a handshake record of 512 bytes, of which one comes


async def answer(call: Call) -> dict[str, str]:
    """Answer at once."""
    return {}


async def linger(call: Call) -> dict[str, str]:
    """Wait until the daemon stops."""
    await call.request.app[STOPPING].wait()
    return {}


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> web.Application:
    monkeypatch.setattr(serving, "share_of_process", lambda: LIMIT)
    routes = [route("GET", "/healthz", answer, role=None), route("GET", "/linger", linger, role=None)]
    return build(routes, title="T", version="1", authenticator=one_secret(Secret("s"), "controller"))


@contextlib.asynccontextmanager
async def idle(port: int, count: int, begun: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Hold connections open; every other one has begun something and does not end it."""
    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    try:
        for _, writer in pairs[::2]:
            writer.write(begun)
        yield [reader for reader, _ in pairs]
    finally:
        for _, writer in pairs:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("encrypted", [False, True])
async def test_idle_connections_make_room_for_one_that_asks_and_no_more_stay_than_may(
    app: web.Application, tls: Tls, encrypted: bool
) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with serving.listening(app, listen="127.0.0.1:0", tls=tls if encrypted else None, socket_path=None) as urls:
        before = open_files()
        async with (
            idle(port_of(urls[0]), 5 * LIMIT, TLS_BEGUN if encrypted else HTTP_BEGUN) as readers,
            aiohttp.ClientSession() as session,
        ):
            async with session.get(f"{urls[0]}/healthz", ssl=context) as response:
                assert response.status == 200
            ended = [reader for reader in readers if reader.at_eof() or await closed(reader)]
            assert len(ended) == 4 * LIMIT + 1
            assert open_files() - before <= 5 * LIMIT + LIMIT + 1  # theirs and ours
            async with session.get(f"{urls[0]}/healthz", ssl=context) as response:  # on the same connection
                assert response.status == 200


async def closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(0.02):
            return await reader.read(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


async def test_where_all_are_at_work_a_newcomer_is_turned_away_and_the_unix_socket_is_not_concerned(
    app: web.Application, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    async with (
        serving.listening(app, listen="127.0.0.1:0", tls=None, socket_path=path) as urls,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        waiting = [asyncio.create_task(session.get(f"{urls[0]}/linger")) for _ in range(LIMIT)]
        while sum(one.requests for door in doors_of(app) for one in door._open) < LIMIT:
            await asyncio.sleep(0)
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(f"{urls[0]}/healthz")
        assert await asyncio.to_thread(healthy, UnixConnection(path, 10))
        app[STOPPING].set()
        assert {(await one).status for one in waiting} == {200}
        async with session.get(f"{urls[0]}/healthz") as response:
            assert response.status == 200


def doors_of(app: web.Application) -> set[connections.Door]:
    return {one.door for one in app[CONNECTIONS]._by_descriptor.values()}


def test_a_listener_has_its_share_of_the_descriptors_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, share in ((1024, 128), (16_384, 1024), (1 << 20, 1024), (-1, 1024), (4, 1)):
        monkeypatch.setattr("resource.getrlimit", lambda _, soft=soft: (soft, soft))
        assert connections.share_of_process() == share
