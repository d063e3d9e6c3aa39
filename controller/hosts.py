"""The enrolled hosts: one agent client each, and one follower that keeps their records true."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit
from uuid import UUID

from agent.client import AgentClient, AgentProblem, AgentUnreachable, Timeouts
from agent.web.auth import Secret
from agent.web.checkpoint import Checkpoint, no_checkpoint
from agent.web.errors import InvalidRequest
from agent.web.log import kv
from agent.wire import fleet as wire
from agent.wire.base import utc_now
from agent.wire.host import HostFacts
from agent.wire.vm import HostVm
from controller.db import Database, write
from controller.errors import (
    AgentRefusedToken,
    DatabaseFailed,
    HostIsAnother,
    HostKept,
    HostNotFound,
    HostUnreachable,
)
from controller.store import hosts, identity, vms
from controller.store.hosts import Endpoint

log = logging.getLogger("coldframe.hosts")

#: Makes the task that follows one host (see controller.events); it ends when it is cancelled.
Follow = Callable[[str], asyncio.Task[None]]


class Hosts:
    """The agent clients by host name. ``follow`` is set once, by app.py, since followers need the engine too."""

    def __init__(self, db: Database, timeouts: Timeouts | None = None, checkpoint: Checkpoint = no_checkpoint) -> None:
        self.db = db
        self._checkpoint = checkpoint
        self.follow: Follow | None = None
        self.timeouts = timeouts
        self._own: UUID | None = None  # known once entered
        self._clients: dict[str, AgentClient] = {}
        self._ends: dict[str, Endpoint] = {}
        self._aligning = asyncio.Lock()
        self._in_doubt = asyncio.Event()
        self._followers: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        self._own = await self.db.run(identity.own)
        await self.align()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop_following()
        for client in self._clients.values():
            await client.close()
        self._clients.clear()
        self._ends.clear()

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

    async def keep_aligned(self) -> None:
        """Have the hosts reached as the records say, where that failed when they were changed. Until cancelled.

        Raises DatabaseFailed; begin again then.
        """
        while True:
            await self._in_doubt.wait()
            await self.align()

    async def align(self) -> None:
        """Have one client of each host that is recorded, and one follower once hosts are followed.

        Raises DatabaseFailed.
        """
        async with self._aligning:
            self._in_doubt.set()
            recorded = await self.db.run(hosts.endpoints)
            for name in self._ends.keys() - recorded.keys():
                await self._let_go(name)
            for name, end in recorded.items():
                await self._use(name, end)
            self._in_doubt.clear()  # whoever has changed a host since waits to align, and doubts anew

    async def stop_following(self) -> None:
        """Stop reading from all hosts."""
        self.follow = None
        for name in list(self._followers):
            await self._unfollow(name)

    async def add(self, body: wire.AddHost) -> wire.Host:
        """Enrol a host whose agent answers to this URL and token.

        Raises InvalidRequest, HostExists, HostUrlTaken, HostKept, HostUnreachable, AgentRefusedToken; nothing is
        recorded then.
        """
        async with self._asked(body.name, body.url, body.agent_token, body.fingerprint) as client:
            facts = await client.host()
            found = await client.vms()
        self._require_free(body.url, facts)
        async with self._aligned_after():
            await self.db.run(_enroll, body, facts, found, utc_now())
        self._tell("host-added", host=body.name, url=body.url)
        return await self.db.run(hosts.get, body.name)

    async def change(self, name: str, body: wire.ChangeHost, require: Callable[[], object]) -> wire.Host:
        """Use another address, token or certificate of an enrolled agent, or give the host another name.

        ``require`` runs on the database's thread before anything is changed. Work under way goes on at the new
        address; a host with such work is not renamed. Raises InvalidRequest, HostNotFound, HostExists, HostBusy,
        HostUrlTaken, HostUnreachable, AgentRefusedToken, HostIsAnother; nothing is changed then.
        """
        await self.db.run(require)
        before = await self.db.run(hosts.endpoint, name)
        after = _changed(before, body)
        if after != replace(before, name=after.name):
            known, seen = await self.db.run(hosts.cursor, name)
            async with self._asked(name, after.url, after.token.reveal(), after.fingerprint) as client:
                page = await client.events(seen)
            if known not in {None, page.log}:
                raise HostIsAnother(name=name, url=after.url)
        await self._unfollow(name)
        async with self._aligned_after():
            try:
                await self.db.run(hosts.change, name, after)
            finally:
                await self._unfollow(name)  # work that could not reach it has had it looked at in between
        self._tell("host-changed", host=name, name=after.name, url=after.url)
        return await self.db.run(hosts.get, after.name)

    async def remove(self, name: str) -> None:
        """Take a host out of the records and stop following it. Raises HostNotFound, HostBusy."""
        async with self._aligned_after():
            await self.db.run(hosts.remove, name)
        self._tell("host-removed", host=name)

    def _require_free(self, url: str, facts: HostFacts) -> None:
        """Raise HostKept where another controller works with a host: its agent would refuse whatever we ask for."""
        keeper = facts.keeper
        if keeper is not None and keeper.controller != self._own:
            raise HostKept(url=url, controller=keeper.controller, since=keeper.since.isoformat(), own=self._own)

    @asynccontextmanager
    async def _asked(self, name: str, url: str, token: str, fingerprint: str | None) -> AsyncIterator[AgentClient]:
        """Yield a client of an agent that is to be used from now on, and say what is wrong with what was given.

        Raises InvalidRequest, HostUnreachable, AgentRefusedToken.
        """
        check_url(url)
        try:
            client = self._client(url, token, fingerprint)
        except ValueError as err:
            reason = "expected a SHA-256 in hexadecimal, with or without colons"
            raise InvalidRequest(where="body.fingerprint", reason=reason) from err
        try:
            yield client
        except AgentUnreachable as err:
            raise HostUnreachable(name=name, reason=err.facts["reason"]) from err
        except AgentProblem as err:
            if err.answer.status in {401, 403}:
                raise AgentRefusedToken(name=name, url=url) from err
            raise
        finally:
            await client.close()

    @asynccontextmanager
    async def _aligned_after(self) -> AsyncIterator[None]:
        """Reach the hosts as the records say after a change of them, also where that was not confirmed: it may stand.

        Where the database does not tell now, ``keep_aligned`` sees to it.
        """
        try:
            yield
        finally:
            try:
                await self.align()
            except DatabaseFailed as err:
                log.warning(kv("hosts-not-aligned", detail=str(err)))

    async def _use(self, name: str, end: Endpoint) -> None:
        """Reach a host at this address, and follow it. Calls under way to another end, and are repeated."""
        if name not in self._clients:
            self._clients[name] = self._client(end.url, end.token.reveal(), end.fingerprint)
        elif end != self._ends[name]:
            await self._unfollow(name)
            await self._clients[name].move(end.url, end.token.reveal(), end.fingerprint)
        self._ends[name] = end
        follower = self._followers.get(name)
        if follower is None or follower.done():
            self._follow_again(name)

    async def _let_go(self, name: str) -> None:
        await self._unfollow(name)
        del self._ends[name]
        await self._clients.pop(name).close()

    def _client(self, url: str, token: str, fingerprint: str | None) -> AgentClient:
        own, checkpoint = self._own, self._checkpoint
        return AgentClient(url, token, fingerprint, self.timeouts, controller=own, checkpoint=checkpoint)

    async def _move(self, name: str, after: Endpoint) -> None:
        self._clients[after.name] = client = self._clients.pop(name)
        await client.move(after.url, after.token.reveal(), after.fingerprint)

    def _tell(self, event: str, **facts: object) -> None:
        log.info(kv(event, **facts))

    async def did_not_answer(self, name: str, reason: str) -> None:
        """Show why a host could not be reached, and have it looked at now: once it answers, what it missed is done.

        Raises DatabaseFailed, HostNotFound.
        """
        await self.db.run(hosts.failed, name, reason)
        if name in self._followers:
            await self._unfollow(name)
            if name not in self._followers and name in self._clients:  # nobody else was as fast
                self._follow_again(name)

    def _follow_again(self, name: str) -> None:
        if self.follow is not None:
            self._followers[name] = self.follow(name)

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


def _changed(before: Endpoint, body: wire.ChangeHost) -> Endpoint:
    """Return how the host is to be reached, with what the body does not name as before."""
    return Endpoint(
        name=body.name or before.name,
        url=body.url or before.url,
        token=Secret(body.agent_token) if body.agent_token else before.token,
        fingerprint=before.fingerprint if body.fingerprint is None else body.fingerprint or None,
    )


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
