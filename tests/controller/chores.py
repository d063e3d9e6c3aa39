"""What the controller commits beside its operations: calls that change records at once, and what it does by itself."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import msgspec
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from agent.wire.base import Request
from agent.wire.fleet import AddHost
from agent.wire.operation import Operation
from agent.wire.retention import SetRetention
from controller.app import make_app
from controller.config import Config
from controller.db import probe
from controller.events import Follower, Pace
from controller.operations import backup_host_files, place, snapshot_delete, sync
from controller.store import backup_files, events, hosts, operations, retention, tokens, vms
from tests.controller.fake_agent import TOKEN
from tests.controller.travels import have_somewhere_to_go
from tests.controller.world import HOST, OTHER, World

OWNER = UUID("11f4a9d0-6f5e-4f8e-9d5a-0a9b7c1d2e3f")
Act = Callable[[World], Awaitable[None]]


class Interrupted(Exception):
    """A call got no answer, or the answer that the database failed."""


async def nothing(one: World) -> None:
    """Leave the state as it is."""


@dataclass(frozen=True)
class Chore:
    """``act`` may be done again, whatever became of it the first time."""

    act: Act
    prepare: Act = nothing
    #: The points that it is there for, where others strike the rest.
    only: str = ""


def call(method: str, path: str, **body: Any) -> Act:
    """Return a call of the API as an admin; done already, or not to be found any more, is as good."""

    async def act(one: World) -> None:
        secret = (await one.db.run(tokens.create, f"caller-{uuid4()}", "admin")).secret
        app = make_app(Config(), one.db, one.hosts, one.engine, CollectorRegistry())
        target = await _filled(one, path)
        async with TestClient(TestServer(app), headers={"Authorization": f"Bearer {secret}"}) as client:
            values = {
                key: await _filled(one, value) if isinstance(value, str) else value for key, value in body.items()
            }
            async with client.request(method, target, json=values if body else None) as answer:
                if answer.status not in {200, 201, 202, 204, 404, 409}:
                    raise Interrupted(await answer.text())

    return act


async def _filled(one: World, text: str) -> str:
    """Fill in what a call names: the VM, its snapshot, another address of the same agent, and what was prepared."""
    copies = await one.db.run(backup_files.of_owner, OWNER)
    found = {
        "vm": one.vm.uuid,
        "snapshot": next((item.uuid for item in await one.tree()), ""),
        "url": str(one.hosts.client(HOST).url).replace("127.0.0.1", "localhost") if "{url}" in text else "",
        "backup": next((item.uuid for item in copies if item.type == "nvram"), uuid4()),
        "token": next((item.uuid for item in (await one.db.run(tokens.page, 99)).items if item.name == "old"), uuid4()),
        "operation": next(iter(await _open(one)), uuid4()),
    }
    return text.format(**found)


async def _open(one: World) -> list[UUID]:
    found: list[Operation] = list((await one.db.run(operations.page, 99)).items)
    return [item.uuid for item in found if item.ended_at is None]


async def have_an_old_token(one: World) -> None:
    await one.db.run(tokens.create, "old", "reader")


async def have_another_host(one: World) -> None:
    url = str(one.hosts.client(HOST).url).replace("127.0.0.1", "localhost")
    one.agent.vms.clear()
    await one.hosts.add(AddHost(name=OTHER, url=url, agent_token=TOKEN))
    one.agent.vms[one.vm.uuid] = one.vm


async def have_a_policy(one: World) -> None:
    await one.db.run(retention.put, "last", SetRetention(vm=str(one.vm.uuid), keep_last=9))


async def have_a_copy_of_another_owner(one: World) -> None:
    await one.act("vm-backup-host-files", backup_host_files.Wanted(owners=[OWNER]))


async def undefine(one: World) -> None:
    del one.agent.vms[one.vm.uuid]
    await look(one)


async def have_a_deletion_that_waits(one: World) -> None:
    one.vm.state = "running"
    wanted = snapshot_delete.Wanted(snapshot=(await one.tree())[0].uuid)
    queued = await one.submit("snapshot-delete", wanted)
    await seen(one, lambda: operations.get(queued.uuid).is_parked)


async def seen(one: World, is_so: Callable[[], bool]) -> None:
    """Wait until the records show something. Raises Interrupted where the engine that brings it about has died."""
    async with asyncio.timeout(20):
        while not await one.db.run(is_so):
            if one.has_died:
                raise Interrupted
            await asyncio.sleep(0.001)


def _follower(one: World) -> Follower:
    return Follower(HOST, one.db, one.hosts, one.engine.nudge, Pace())


async def look(one: World) -> None:
    """Look at the host."""
    await _follower(one).look()


async def let_it_start_and_stop(one: World) -> None:
    one.agent.happen("vm.started", one.vm)
    one.agent.happen("vm.stopped", one.vm)


async def read_events(one: World) -> None:
    await _follower(one).read_events(0)


async def miss_the_host(one: World) -> None:
    """Follow a host that does not answer until that is recorded."""
    one.agent.dead = True
    following = asyncio.ensure_future(_follower(one).run())
    while (await one.db.run(hosts.get, HOST)).error is None and not following.done():
        await asyncio.sleep(0.001)
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following
    one.agent.dead = False


async def be_begun_elsewhere(one: World) -> None:
    """Leave an operation that a controller of another machine has begun, which is not heard of any more."""
    wanted = msgspec.to_builtins(sync.Wanted())

    def begin() -> bool:  # at once, or the engine here takes it in between
        queued = operations.enqueue("vm-sync", one.vm.uuid, HOST, wanted)
        return operations.claim(queued.uuid, "elsewhere")

    assert await one.db.run(begin)


async def take_over(one: World) -> None:
    """Wait until the engine has brought everything to its end."""
    await seen(one, lambda: operations.open_count() == 0)


async def hand_over(one: World) -> None:
    """Stop the engine and begin with another one, as a restart of the service does."""
    await one.engine.__aexit__(None, None, None)
    one.engine = await one.new_engine().__aenter__()


async def put_off(one: World) -> None:
    """Have a deletion wait for its VM to stop, once it has begun."""
    one.vm.state = "shut-off"
    one.agent.refuse["PUT /v1/transactions/{id}"] = "domain-running"  # it was started in that moment
    wanted = snapshot_delete.Wanted(snapshot=(await one.tree())[0].uuid)
    queued = await one.submit("snapshot-delete", wanted)
    await seen(one, lambda: operations.get(queued.uuid).is_parked)


async def try_the_database(one: World) -> None:
    await one.db.run(probe)


async def lose_the_host(one: World) -> None:
    """Lose the VM's host when it was told to commit a snapshot; another one is there."""
    await have_somewhere_to_go(one)

    async def die(number: int, called: str) -> None:
        if called.endswith("/commit"):
            one.agent.faults[number] = "crash"

    one.agent.on_call = die
    ended = await one.create(name="second")
    assert ended.error is not None
    assert ended.error.code == "outcome-unknown"
    one.agent.faults.clear()


async def go_on_elsewhere(one: World) -> None:
    """Place the VM on the other host, unless it is there, and settle: what it goes on with tells how it ended."""
    one.agent.dead = True
    await take_over(one)
    works: list[tuple[str, Request]] = [("vm-place", place.Wanted(host=OTHER, force=True)), ("vm-sync", sync.Wanted())]
    for kind, wanted in works[OTHER in await one.db.run(vms.defined_on, one.vm.uuid) :]:
        queued = await one.engine.submit(kind, wanted, lambda: (one.vm.uuid, OTHER))
        await seen(one, partial(lambda uuid: operations.get(uuid).ended_at is not None, queued.uuid))


async def trim(one: World) -> None:
    await one.db.run(events.trim, 1)


CHORES: dict[str, Chore] = {
    "token-create": Chore(call("POST", "/v1/tokens", name="ci", role="reader")),
    "token-revoke": Chore(call("DELETE", "/v1/tokens/{token}"), have_an_old_token),
    "host-add": Chore(call("POST", "/v1/hosts", name=OTHER, url="{url}", agent_token=TOKEN)),
    "host-change": Chore(call("PATCH", f"/v1/hosts/{HOST}", url="{url}")),
    "host-remove": Chore(call("DELETE", f"/v1/hosts/{OTHER}"), have_another_host),
    "snapshot-edit": Chore(call("PATCH", "/v1/snapshots/{snapshot}", description="new")),
    "policy-set": Chore(call("PUT", "/v1/retention-policies/last", vm="{vm}", keep_last=9)),
    "policy-remove": Chore(call("DELETE", "/v1/retention-policies/last"), have_a_policy),
    "backup-remove": Chore(call("DELETE", "/v1/backup-files/{backup}"), have_a_copy_of_another_owner),
    "vm-forget": Chore(call("DELETE", "/v1/vms/{vm}?disks=true"), undefine),
    "dry-run": Chore(call("POST", "/v1/vms/{vm}/snapshots?dry_run=true", name="second"), only="plan_transaction"),
    "cancel": Chore(call("DELETE", "/v1/operations/{operation}"), have_a_deletion_that_waits),
    "look": Chore(look),
    "events": Chore(read_events, let_it_start_and_stop),
    "host-away": Chore(miss_the_host),
    "take-over": Chore(take_over, be_begun_elsewhere, only="operations.claim$"),
    "ready-again": Chore(try_the_database),
    "hand-over": Chore(hand_over),
    "put-off": Chore(put_off, only="ending.parked"),
    "lost-host": Chore(go_on_elsewhere, lose_the_host, only="as_defined"),
    "trim": Chore(trim),
}
