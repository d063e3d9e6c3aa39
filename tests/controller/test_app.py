"""The controller as it is wired, over TCP."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest
from aiohttp import ClientSession

from agent.web.errors import SettingsError
from agent.web.serving import listening
from controller.app import running, serve
from controller.config import Config
from controller.db import Database
from controller.models import database
from controller.store import invariants, tokens


def settings(tmp_path: Path, **changes: object) -> Config:
    return Config(**{"listen": "127.0.0.1:0", "database": f"sqlite:///{tmp_path}/c.db", **changes})  # type: ignore[arg-type]


async def test_a_controller_starts_on_an_empty_database_serves_and_leaves_nothing_open(tmp_path: Path) -> None:
    config = settings(tmp_path)
    async with Database(config.database) as db:
        secret = (await db.run(tokens.create, "first", "admin")).secret
    async with (
        running(config) as app,
        listening(app, listen=config.listen, tls=None, socket_path=None) as (url,),
        ClientSession(url, headers={"Authorization": f"Bearer {secret}"}) as session,
    ):
        answer = await session.get("/v1/vms")
        assert (answer.status, await answer.json()) == (200, {"items": [], "next": None})
        document = await (await session.get("/openapi.json")).json()
        assert "/v1/vms/{vm}/snapshots" in document["paths"]
    assert database.obj is None


async def test_a_stream_that_is_open_does_not_hold_up_the_end(tmp_path: Path) -> None:
    config = settings(tmp_path)
    async with Database(config.database) as db:
        secret = (await db.run(tokens.create, "first", "admin")).secret
    async with running(config) as app, ClientSession(headers={"Authorization": f"Bearer {secret}"}) as session:
        async with listening(app, listen=config.listen, tls=None, socket_path=None) as (url,):
            stream = await session.get(f"{url}/v1/events")
            assert b"token.created" in await stream.content.readuntil(b"\n\n")
        assert await stream.read() == b""


async def test_a_start_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        async with running(settings(tmp_path, token_file=tmp_path / "missing")):
            pass
    assert database.obj is None


async def test_the_daemon_ends_on_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        daemon = asyncio.create_task(serve(settings(tmp_path)))
        async with asyncio.timeout(20):
            assert await asyncio.get_running_loop().sock_recv(told, 100) == b"READY=1"
            # The handler is there once READY was sent and the loop has come round.
            await asyncio.sleep(0)
            os.kill(os.getpid(), signal.SIGTERM)
            await daemon
            assert await asyncio.get_running_loop().sock_recv(told, 100) == b"STOPPING=1"
    async with Database(settings(tmp_path).database) as db:
        assert await db.run(invariants.orphans) == []
