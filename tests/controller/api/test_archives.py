"""Exports and imports through both daemons' HTTP, on real images and a real journal; libvirt is played."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp import ClientPayloadError, web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from agent.api.images import ImageRoutes
from agent.api.transactions import TransactionRoutes
from agent.transactions.foresight import Foresight
from agent.transactions.manager import Manager
from agent.transactions.transfers import Transfers
from agent.web.application import build
from agent.web.auth import Secret, one_secret
from agent.wire.base import utc_now
from agent.wire.vm import HostVm
from controller.api import archives
from controller.app import make_app
from controller.archive import transfers
from controller.config import Config
from controller.db import Database
from controller.hosts import Hosts
from controller.operations import snapshot_create, snapshot_export
from controller.operations.engine import Engine, Limits
from controller.operations.kinds import KINDS
from controller.store import audit, backup_files, groups, hosts, invariants, operations, snapshots, tokens, vms
from tests.agent.transactions.rig import VM, Rig, raw_sha256
from tests.controller.archive import forge
from tests.controller.world import HASTY
from tests.web.conformance import Conformance

HOST = "kvm1"
LIMIT_BYTES = 16 << 20


@dataclass
class House:
    """One host, the controller that has it enrolled, and a caller."""

    rig: Rig
    manager: Manager
    db: Database
    engine: Engine
    client: TestClient[Any, Any]
    secret: str

    async def call(self, method: str, path: str, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.secret}", **more.pop("headers", {})}
        return await self.client.request(method, path, headers=headers, **more)

    async def snapshot(self) -> UUID:
        wanted = snapshot_create.Wanted(name="kept")
        queued = await self.engine.submit("snapshot-create", wanted, lambda: (VM, HOST))
        ended = await self.engine.wait(queued.uuid, 20)
        assert ended.state == "succeeded", ended.error
        return UUID(ended.result["snapshot"])

    async def export(self, snapshot: UUID, disks: str = "flat") -> bytes:
        answer = await self.call("GET", f"/v1/snapshots/{snapshot}/export?disks={disks}")
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "application/zstd"
        data: bytes = await answer.read()
        return data

    async def import_(self, archive: bytes, query: str = "as_new=other", key: str = "") -> Any:
        headers = {"Content-Type": "application/octet-stream", **({"Idempotency-Key": key} if key else {})}
        path = f"/v1/snapshots/import?host={HOST}&{query}"
        return await self.call("POST", path, data=archive, headers=headers)

    async def failed(self, archive: bytes, query: str = "as_new=other") -> str:
        """Import what cannot be; return the code that the call or its operation ends with."""
        answer = await self.import_(archive, query)
        told = await answer.json()
        assert answer.status != 202 or told["state"] == "failed", told
        code: str = told["error"]["code"] if answer.status == 202 else told["code"]
        return code

    def stray(self) -> list[str]:
        return [path for path in self.rig.files() if ".coldframe-" in path]


@pytest.fixture
async def house(db: Database, tmp_path: Path) -> AsyncIterator[House]:
    rig = Rig(tmp_path / "host").build()
    manager = rig.manager()
    routes = [
        *TransactionRoutes(manager, LIMIT_BYTES).routes(),
        *ImageRoutes(Transfers(manager), Foresight(manager)).routes(),
    ]
    known = one_secret(Secret("secret"), "controller")
    own = build(routes, title="agent", version="1", authenticator=known, registry=CollectorRegistry())
    async with AsyncExitStack() as stack:
        agent = await stack.enter_async_context(TestServer(own))
        await db.run(hosts.add, HOST, str(agent.make_url("")), "secret")
        await db.run(vms.record_inventory, HOST, [_seen(rig)], utc_now())
        registry = await stack.enter_async_context(Hosts(db))
        engine = await stack.enter_async_context(Engine(db, registry, KINDS, Limits(patience=HASTY)))
        app = make_app(Config(), db, registry, engine, CollectorRegistry())
        conformance = Conformance(app)
        secret = (await db.run(tokens.create, "admin", "admin")).secret
        client = await stack.enter_async_context(TestClient(TestServer(app)))
        yield House(rig, manager, db, engine, client, secret)
        conformance.verify()


def _seen(rig: Rig) -> HostVm:
    return HostVm(
        uuid=VM,
        name="win11",
        state="shut-off",
        persistent=True,
        managed_save=False,
        firmware="uefi",
        tpm="2.0",
        nvram=str(rig.nvram),
        disks=[],
        domain_xml="",
        guard=None,
    )


@pytest.mark.parametrize("disks", ["flat", "chain"])
async def test_snapshot_goes_out_and_comes_back_as_another_vm(house: House, disks: str) -> None:
    frozen = house.rig.contents()
    taken = await house.snapshot()
    archive = await house.export(taken, disks)
    assert house.stray() == []
    assert [info.name for info, _ in forge.members(archive)][:4] == ["manifest.json", "domain.xml", "nvram", "tpm.tar"]
    answer = await house.import_(archive)
    made = await answer.json()
    assert (answer.status, made["state"]) == (202, "succeeded"), made
    assert answer.headers["Location"] == f"/v1/operations/{made['uuid']}"
    vm, snapshot = UUID(made["result"]["vm"]), UUID(made["result"]["snapshot"])
    assert {t: raw_sha256(house.rig.top(t, vm)) for t in house.rig.targets} == {t: frozen[t] for t in house.rig.targets}
    group = await house.db.run(snapshots.group, snapshot)
    assert (group.snapshot.name, group.snapshot.state, group.snapshot.current) == ("kept", "ready", True)
    assert (group.snapshot.vm, group.snapshot.parent, group.snapshot.host_files.state) == (vm, None, "complete")
    assert all(volume.fingerprint for volume in group.volumes)
    held = {file.type: await house.db.run(backup_files.data, file.uuid) for file in group.backups}
    assert held == {
        one.type: await house.db.run(backup_files.data, one.uuid)
        for one in (await house.db.run(snapshots.group, taken)).backups
    }
    assert await house.db.run(invariants.orphans) == []
    assert house.stray() == []
    lines = await house.db.run(audit.page, 10, None)
    assert {f"/v1/snapshots/{taken}/export", "/v1/snapshots/import"} <= {line.path for line in lines.items}


async def test_import_of_a_vm_that_is_there_is_refused_with_the_way_out(house: House) -> None:
    archive = await house.export(await house.snapshot())
    before = house.rig.files()
    assert await house.failed(archive, "") == "vm-known"
    assert await house.failed(archive, "as_new=win11") == "vm-known"
    assert await house.failed(archive, "as_new=../x") == "name-invalid"
    assert await house.failed(archive, "as_new=other&directory=/etc") == "directory-refused"
    assert house.rig.files() == before
    assert await house.db.run(invariants.orphans) == []


@pytest.mark.case("X7")
@pytest.mark.parametrize("harm", ["flipped", "cut", "longer", "no sums", "not one", "half a header"])
async def test_hostile_archive_leaves_neither_files_nor_records(house: House, harm: str) -> None:
    archive = await house.export(await house.snapshot(), "chain")
    parts = forge.members(archive)
    info, data = next(part for part in parts if part[0].name == "disks/vdb.qcow2")
    at = parts.index((info, data))
    spoiled = {
        "flipped": lambda: forge.put_together([*parts[:at], (info, data[:-1] + b"x"), *parts[at + 1 :]]),
        "cut": lambda: archive[: len(archive) // 2],
        "longer": lambda: archive + b"more",
        "no sums": lambda: forge.put_together(parts[:-1]),
        "not one": lambda: b"hello" * 1000,
        "half a header": lambda: archive[:10],
    }[harm]()
    before, known = house.rig.files(), (await house.db.run(snapshots.page, 10)).items
    assert await house.failed(spoiled) == "snapshot-archive-refused"
    assert house.rig.files() == before
    assert house.rig.guards.all() == {}
    assert (await house.db.run(snapshots.page, 10)).items == known
    assert await house.db.run(invariants.orphans) == []
    assert (await (await house.import_(archive)).json())["state"] == "succeeded"


@pytest.mark.case("X7")
@pytest.mark.parametrize(
    ("where", "value"),
    [("vm", {"name": "../x"}), ("snapshot", {"name": "a\nb"}), ("snapshot", {"labels": {"\0": ""}})],
)
async def test_an_archive_may_call_nothing_what_a_caller_may_not(
    house: House, where: str, value: dict[str, Any]
) -> None:
    (info, data), *others = forge.members(await house.export(await house.snapshot()))
    told = json.loads(data)
    told[where].update(value)
    forged = json.dumps(told).encode()
    info.size = len(forged)
    before = house.rig.files()
    assert await house.failed(forge.put_together([(info, forged), *others]), "") == "name-invalid"
    assert house.rig.files() == before


async def test_a_dry_run_reads_the_whole_archive_and_changes_nothing(house: House) -> None:
    archive = await house.export(await house.snapshot())
    before = house.rig.files()
    told = await (await house.import_(archive, "as_new=other&dry_run=true")).json()
    assert (told["kind"], told["would"], told["refusals"]) == ("snapshot-import", "succeed", [])
    assert {"receive-image", "define-domain"} <= {step["action"] for step in told["steps"]}
    told = await (await house.import_(archive[:-9], "as_new=other&dry_run=true")).json()
    assert [one["code"] for one in told["refusals"]] == ["snapshot-archive-refused"]
    told = await (await house.import_(archive, "as_new=other&directory=/etc&dry_run=true")).json()
    assert [one["code"] for one in told["refusals"]] == ["directory-refused"]
    assert house.rig.files() == before


async def test_an_import_shows_that_what_arrived_is_being_checked(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    archive = await house.export(await house.snapshot(), "chain")
    with caplog.at_level("INFO", "coldframe"):
        operation = await (await house.import_(archive)).json()
    shown = [line.rpartition("step=")[2] for line in caplog.messages if f"operation={operation['uuid']}" in line]
    shown = [step for step in shown if step in {"prepare", "receive", "check"}]
    images = shown.count("check")
    assert images > 1
    assert shown == ["prepare", *["receive", "check"] * images]


async def test_the_same_key_imports_once(house: House) -> None:
    archive = await house.export(await house.snapshot())
    first = await (await house.import_(archive, key="once")).json()
    again = await (await house.import_(archive, key="once")).json()
    assert first == again
    assert await house.failed(archive) == "vm-known"


async def test_export_that_cannot_be_is_refused_before_its_first_byte(house: House) -> None:
    taken = await house.snapshot()
    frozen = (await house.db.run(snapshots.group, taken)).volumes[0].path
    house.rig.write_disk("vda", 0x70, Path(frozen))
    answer = await house.call("GET", f"/v1/snapshots/{taken}/export")
    told = await answer.json()
    assert (answer.status, told["code"], told["facts"]["cause"]) == (409, "export-failed", "frozen-file-altered")
    answer = await house.call("GET", f"/v1/snapshots/{uuid4()}/export")
    assert (answer.status, (await answer.json())["code"]) == (404, "snapshot-not-found")
    assert house.stray() == []


async def test_export_of_a_snapshot_of_which_a_deletion_has_altered_a_disk_is_refused(house: House) -> None:
    taken = await house.snapshot()
    await house.db.run(groups.altered, taken, "vda", "1:2")
    answer = await house.call("GET", f"/v1/snapshots/{taken}/export")
    told = await answer.json()
    assert (answer.status, told["code"]) == (409, "snapshot-partly-deleted")
    assert "vda" in told["detail"]


async def test_import_whose_caller_hangs_up_leaves_nothing(house: House) -> None:
    archive = await house.export(await house.snapshot(), "chain")
    before = house.rig.files()

    async def half() -> AsyncIterator[bytes]:
        yield archive[: len(archive) - 100]
        await asyncio.sleep(0)
        raise ConnectionResetError

    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the client makes of it
        await house.import_(half())  # type: ignore[arg-type]  # a body that breaks off
    begun = [one for one in (await house.db.run(operations.page, 10)).items if one.kind == "snapshot-import"]
    for one in begun:
        ended = await house.engine.wait(one.uuid, 20)
        assert ended.error is not None
        assert ended.error.code == "transfer-broken"
    assert house.rig.files() == before
    assert await house.db.run(invariants.orphans) == []


async def test_import_whose_caller_goes_in_the_middle_of_an_image_leaves_nothing(house: House) -> None:
    noise = Path(house.rig.root / "noise")
    noise.write_bytes(os.urandom(2 << 20))
    await asyncio.to_thread(write_file, house.rig.top("vda"), noise)
    noise.unlink()
    archive = await house.export(await house.snapshot(), "chain")
    assert len(archive) > 2 << 20
    before = house.rig.files()

    async def half() -> AsyncIterator[bytes]:
        yield archive[: 1 << 20]
        while not house.stray():
            await asyncio.sleep(0.01)
        raise ConnectionResetError

    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the client makes of it
        await house.import_(half())  # type: ignore[arg-type]  # a body that breaks off
    (begun,) = [one for one in (await house.db.run(operations.page, 10)).items if one.kind == "snapshot-import"]
    ended = await house.engine.wait(begun.uuid, 20)
    assert ended.error is not None
    assert ended.error.code == "transfer-broken"
    assert house.rig.files() == before
    assert await house.db.run(invariants.orphans) == []


def write_file(image: Path, data: Path) -> None:
    command = f"write -q -s {data} 0 {data.stat().st_size}"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, image], check=True)


async def test_operation_whose_stream_is_gone_fails_and_holds_up_nobody(house: House) -> None:
    taken = await house.snapshot()
    house.engine.streams.sinks._patience_s = 0.01
    wanted = snapshot_export.Wanted(snapshot=taken)
    queued = await house.engine.submit("snapshot-export", wanted, lambda: (VM, HOST))
    ended = await house.engine.wait(queued.uuid, 20)
    assert ended.error is not None
    assert ended.error.code == "transfer-broken"
    assert house.stray() == []


async def test_import_whose_caller_stands_still_leaves_nothing_and_holds_up_nobody(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "arriving", partial(transfers.arriving, stall_s=0.2))
    archive = await house.export(await house.snapshot(), "chain")
    before, ended = house.rig.files(), asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield archive[: len(archive) - 100]
        await ended.wait()
        yield archive[len(archive) - 100 :]

    asked = asyncio.create_task(house.failed(half()))  # type: ignore[arg-type]  # a body in pieces
    while not (begun := (await house.db.run(operations.page, 1, kind="snapshot-import")).items):
        await asyncio.sleep(0.01)
    failed = await house.engine.wait(begun[0].uuid, 20)
    ended.set()
    assert (failed.error and failed.error.code, await asked) == ("transfer-broken", "transfer-broken")
    assert house.rig.files() == before
    assert house.rig.guards.all() == {}


async def test_export_whose_caller_takes_nothing_ends_and_lets_the_vm_go(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, full = await house.snapshot(), asyncio.Event()

    async def write(_: web.StreamResponse, _piece: bytes) -> None:
        await full.wait()  # as of a socket that nobody reads from

    monkeypatch.setattr(archives, "STALL_S", 0.2)
    monkeypatch.setattr(web.StreamResponse, "write", write)
    with pytest.raises(ClientPayloadError):
        await house.export(taken)
    (ended,) = (await house.db.run(operations.page, 1, kind="snapshot-export")).items
    assert (ended.state, ended.error and ended.error.code) == ("failed", "transfer-broken")
    assert house.rig.guards.all() == {}
    assert house.stray() == []
