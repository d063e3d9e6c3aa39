"""The enrolled hosts: one agent client each, and one follower that keeps their records true."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from agent.client import AgentClient, AgentProblem, AgentUnreachable, Timeouts
from agent.web.checkpoint import Checkpoint, no_checkpoint
from agent.web.errors import InvalidRequest
from agent.web.log import kv
from agent.wire import fleet as wire
from agent.wire.base import utc_now
from agent.wire.host import HostFacts
from agent.wire.vm import HostVm
from controller.db import Database, write
from controller.errors import AgentRefusedToken, HostNotFound, HostUnreachable
from controller.store import hosts, vms

log = logging.getLogger("coldframe.hosts")

#: Makes the task that follows one host (see controller.events); it ends when it is cancelled.
Follow = Callable[[str], asyncio.Task[None]]


class Hosts:
    """The agent clients by host name. ``follow`` is set once, by app.py, since followers need the engine too."""

    def __init__(self, db: Database, timeouts: Timeouts | None = None, checkpoint: Checkpoint = no_checkpoint) -> None:
        self.db = db
        self._checkpoint = checkpoint
        self.follow: Follow | None = None
        self._timeouts = timeouts
        self._clients: dict[str, AgentClient] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        for name in await self.db.run(hosts.names):
            await self._connect(name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop_following()
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    def client(self, name: str) -> AgentClient:
        """Return a host's client. Raises HostNotFound."""
        if name not in self._clients:
            raise HostNotFound(name=name)
        return self._clients[name]

    def start_following(self, follow: Follow) -> None:
        """Follow every host, and those that are added later."""
        self.follow = follow
        for name in self._clients:
            self._followers[name] = follow(name)

    async def stop_following(self) -> None:
        """Stop reading from all hosts."""
        self.follow = None
        for name in list(self._followers):
            await self._unfollow(name)

    async def add(self, body: wire.AddHost) -> wire.Host:
        """Enrol a host whose agent answers to this URL and token.

        Raises InvalidRequest, HostExists, HostUrlTaken, HostUnreachable, AgentRefusedToken; nothing is recorded then.
        """
        check_url(body.url)
        try:
            client = AgentClient(
                body.url, body.agent_token, body.fingerprint, self._timeouts, checkpoint=self._checkpoint
            )
        except ValueError as err:
            reason = "expected a SHA-256 in hexadecimal, with or without colons"
            raise InvalidRequest(where="body.fingerprint", reason=reason) from err
        try:
            facts = await client.host()
            found = await client.vms()
        except AgentUnreachable as err:
            raise HostUnreachable(name=body.name, reason=err.facts["reason"]) from err
        except AgentProblem as err:
            if err.answer.status in {401, 403}:
                raise AgentRefusedToken(name=body.name, url=body.url) from err
            raise
        finally:
            await client.close()
        await self.db.run(_enroll, body, facts, found, utc_now())
        await self._connect(body.name)
        if self.follow is not None:
            self._followers[body.name] = self.follow(body.name)
        log.info(kv("host-added", host=body.name, url=body.url))
        return await self.db.run(hosts.get, body.name)

    async def remove(self, name: str) -> None:
        """Take a host out of the records and stop following it. Raises HostNotFound, HostBusy."""
        await self.db.run(hosts.remove, name)
        await self._unfollow(name)
        client = self._clients.pop(name, None)
        if client is not None:
            await client.close()
        log.info(kv("host-removed", host=name))

    async def _connect(self, name: str) -> None:
        end = await self.db.run(hosts.endpoint, name)
        self._clients[name] = AgentClient(
            end.url, end.token.reveal(), end.fingerprint, self._timeouts, checkpoint=self._checkpoint
        )

    async def _unfollow(self, name: str) -> None:
        task = self._followers.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _enroll(body: wire.AddHost, facts: HostFacts, found: list[HostVm], at: datetime) -> None:
    """Record a host with what it showed, all in one transaction. Raises HostExists, HostUrlTaken."""
    with write():
        hosts.add(body.name, body.url, body.agent_token, body.fingerprint)
        hosts.seen(body.name, facts, at)
        vms.record_inventory(body.name, found, at)


def check_url(url: str) -> None:
    """Raise InvalidRequest for what is not ``https://host[:port]``, ``http://host[:port]`` or ``unix:///path``."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.path.startswith("/") if parts.scheme == "unix" else parts.hostname and parts.port != 0)
    except ValueError:
        usable = False
    if not usable or parts.scheme not in {"http", "https", "unix"} or parts.query or parts.fragment or parts.username:
        raise InvalidRequest(
            where="body.url", reason="expected https://host[:port], http://host[:port] or unix:///path"
        )
