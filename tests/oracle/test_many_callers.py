"""Many callers at once, through the controller's API, on the whole product in one process.

Whatever they ask for and however it crosses: each is answered, one VM's work is done in turn, a host is not given
more at once than its limit, and no snapshot loses a byte.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent.wire.transaction import Transaction
from controller.operations.engine import Limits
from controller.store import invariants
from tests.oracle.house import House
from tests.oracle.reading import Reader
from tests.oracle.world import run

#: What a caller may be told when others were faster: the snapshot is gone, going, or about to.
LATE = {"snapshot-not-found", "snapshot-busy"}


@dataclass
class Hall:
    """A house full of VMs, each of whose disks reads the same for ever, and the answers that callers got."""

    house: House
    vms: dict[UUID, int] = field(default_factory=dict)  # with the byte that fills the beginning of each disk
    answers: list[dict[str, Any]] = field(default_factory=list)

    async def define(self, number: int, *targets: str) -> UUID:
        """Define a VM whose disks' bytes tell it from every other."""
        vm, byte = uuid4(), 0x41 + number
        disks = {target: self.house.images / f"vm{number}-{target}.qcow2" for target in targets}
        for path in disks.values():
            run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "2M")
            run("qemu-io", "-f", "qcow2", "-c", f"write -q -P {byte} 0 64k", str(path))
        self.house.define(f"vm{number}", vm, disks)
        await self.house.known(vm)
        self.vms[vm] = byte
        return vm

    async def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> dict[str, Any]:
        """Ask as one caller, and wait for the end; a refusal is an answer too."""
        headers = {"Idempotency-Key": key} if key else {}
        async with (
            asyncio.timeout(60),
            self.house.client.request(method, f"{path}?wait=50", json=body, headers=headers) as answer,
        ):
            self.answers.append({"status": answer.status, **await answer.json()})
        return self.answers[-1]

    async def create(self, vm: UUID, name: str, key: str | None = None) -> dict[str, Any]:
        return await self.ask("POST", f"/v1/vms/{vm}/snapshots", {"name": name}, key)

    async def back_up(self, vm: UUID, *owners: UUID) -> dict[str, Any]:
        body = {"owners": [str(one) for one in owners]}
        return await self.ask("POST", f"/v1/vms/{vm}/backup-host-files", body)

    async def revert(self, snapshot: str) -> dict[str, Any]:
        return await self.ask("POST", f"/v1/snapshots/{snapshot}/revert", {"undo_point": False})

    async def delete(self, snapshot: str) -> dict[str, Any]:
        return await self.ask("DELETE", f"/v1/snapshots/{snapshot}")

    async def tree(self, vm: UUID) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await self.house.get(f"/v1/vms/{vm}/snapshots?limit=200"))["items"]
        return items

    async def check(self) -> None:
        """Raise where an answer, a record, a file or the order of the work is not as it must be."""
        await self.house.settle()
        for one in self.answers:
            assert one["status"] in {200, 202, 404, 409}, one
            problem = one if one["status"] >= 400 else one["error"]
            assert one.get("state") in {None, "succeeded", "failed"}, one
            assert problem is None or problem["code"] in LATE, one
        assert await self.house.db.run(invariants.orphans) == []
        assert await self.house.db.run(invariants.unsettled) == []
        assert not list((self.house.state_dir / "guards").iterdir())
        findings = (await self.house.get("/v1/doctor"))["items"]
        assert [one for one in findings if one["severity"] != "info"] == []
        self._check_order()
        await self._check_bytes()

    def _check_order(self) -> None:
        done = self.house.agent.manager.all()
        for vm in self.vms:
            for before, after in pairwise(one for one in done if one.vm == vm):
                assert before.ended_at is not None
                assert before.ended_at <= after.started_at
        assert most_at_once(done) <= Limits().per_host

    async def _check_bytes(self) -> None:
        wanted: dict[Path, int] = {}
        for vm, byte in self.vms.items():
            frozen = [volume["path"] for one in await self.tree(vm) for volume in one["volumes"]]
            wanted |= dict.fromkeys([*self.house.tops(vm).values(), *map(Path, frozen)], byte)
        hashes = await Reader().hashes(wanted)
        assert len(set(hashes.values())) == len(self.vms)
        assert len({(hashes[path], byte) for path, byte in wanted.items()}) == len(self.vms)


def most_at_once(done: Sequence[Transaction]) -> int:
    """Return how many transactions were under way at one moment."""
    changes = sorted([(one.started_at, 1) for one in done] + [(one.ended_at or one.started_at, -1) for one in done])
    at_once = most = 0
    for _, change in changes:
        at_once += change
        most = max(most, at_once)
    return most


@pytest.fixture
async def hall(tmp_path: Path) -> AsyncIterator[Hall]:
    async with House(tmp_path / "house") as house:
        yield Hall(house)


@pytest.mark.case("S14")
@pytest.mark.case("D8")
async def test_twenty_callers_on_one_vm_are_all_answered_and_served_in_turn(hall: Hall) -> None:
    vm = await hall.define(0, "vda", "vdb")
    for name in ("one", "two"):
        assert (await hall.create(vm, name))["state"] == "succeeded"
    one, two = [item["uuid"] for item in await hall.tree(vm)]
    owner = uuid4()
    answers = await asyncio.gather(
        *(hall.create(vm, f"new {number}") for number in range(5)),
        *(hall.revert(one) for _ in range(4)),
        *(hall.delete(two) for _ in range(3)),
        *(hall.back_up(vm, owner) for _ in range(4)),
        *(hall.delete(one) for _ in range(2)),
        *(hall.revert(two) for _ in range(2)),
    )
    assert len(answers) == 20
    assert all(answer["state"] == "succeeded" for answer in answers[:5] + answers[12:16])
    assert Counter(one.get("state") for one in answers[9:12])["succeeded"] == 1
    assert Counter(one.get("state") for one in answers[16:18])["succeeded"] == 1
    assert {item["name"] for item in await hall.tree(vm)} == {f"new {number}" for number in range(5)}
    kept = (await hall.house.get(f"/v1/backup-files?owner={owner}"))["items"]
    assert sorted(item["type"] for item in kept) == ["nvram", "tpm"]
    await hall.check()


@pytest.mark.case("S15")
async def test_one_key_sent_by_twenty_callers_at_once_has_one_effect_and_one_answer(hall: Hall) -> None:
    vm = await hall.define(0, "vda", "vdb")
    made = await asyncio.gather(*(hall.create(vm, "only", key="the-same") for _ in range(20)))
    assert {one["state"] for one in made} == {"succeeded"}
    assert len({(one["uuid"], one["result"]["snapshot"]) for one in made}) == 1
    assert [item["name"] for item in await hall.tree(vm)] == ["only"]
    await hall.check()


@pytest.mark.case("S14")
async def test_ten_vms_are_worked_on_side_by_side_within_the_hosts_limit(hall: Hall) -> None:
    vms = [await hall.define(number, "vda") for number in range(10)]

    async def live(vm: UUID) -> None:
        first = (await hall.create(vm, "first"))["result"]["snapshot"]
        await asyncio.gather(hall.create(vm, "second"), hall.back_up(vm, uuid4()), hall.delete(first))

    await asyncio.gather(*map(live, vms))
    await hall.check()
    assert [[item["name"] for item in await hall.tree(vm)] for vm in vms] == [["second"]] * 10
    assert most_at_once(hall.house.agent.manager.all()) > 1
