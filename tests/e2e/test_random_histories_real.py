"""Random histories of a real VM: started, written to, snapshotted, reverted, merged; every snapshot compared each time.

Fewer and shorter than those of ``tests/oracle``, whose model they share.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.e2e.conftest import Stack, change_at_rest, run_once, seen
from tests.lab import disks
from tests.lab.guest import Guest
from tests.lab.paths import IMAGES
from tests.oracle.model import Kept, Machine

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1_800)]
Vm = Callable[..., Guest]
STEPS = 16
TARGETS = {"vda", "vdb", "vdc"}


class History:
    """One VM and what must be true of it. ``choose`` makes the choices."""

    def __init__(self, stack: Stack, guest: Guest, seed: int) -> None:
        self.stack, self.guest = stack, guest
        self.choose = random.Random(seed)  # noqa: S311 - the same history for the same seed
        self.machine = Machine(guest.uuid, guest.name, {}, {})
        self.steps: list[str] = []
        self.measure()

    def measure(self) -> None:
        """Write down what the VM would see now."""
        found = seen(self.guest)
        self.machine.disks = {target: found[target] for target in TARGETS}
        self.machine.host_files = {type_: found[type_] for type_ in ("nvram", "tpm")}

    def step(self) -> None:
        """Do one thing, and compare everything."""
        actions = [self.run, self.create, self.create]
        if len(self.machine.snapshots) > 1:
            actions += [self.revert, self.revert, self.delete, self.delete_at_the_next_stop]
        action = self.choose.choice(actions)
        self.steps.append(action.__name__)
        action()
        self.check()

    def one(self) -> Kept:
        """Choose a snapshot."""
        return self.choose.choice(list(self.machine.snapshots.values()))

    def run(self) -> None:
        """Start it, let its firmware write a variable, stop it, and change every part as its guest would."""
        self.guest.boot()
        self.guest.set_variable(f"Step{len(self.steps)}", "was here")
        self.guest.destroy()
        change_at_rest(self.guest, self.choose.randbytes(512))
        self.measure()

    def create(self) -> None:
        taken = self.stack.coldframe("snapshot", "create", str(self.guest.uuid))
        self.machine.add(UUID(taken["uuid"]), TARGETS, host_files=True)
        self.machine.current = UUID(taken["uuid"])

    def revert(self) -> None:
        kept, undo = self.one(), self.choose.choice([True, False])
        ended = self.stack.coldframe("snapshot", "revert", str(kept.uuid), *([] if undo else ["--no-undo-point"]))
        if undo:
            self.machine.add(UUID(ended["result"]["undo_point"]), TARGETS, host_files=True, automatic=True)
        self.machine.go_back(kept, None)
        asked = [self.stack.coldframe("operation", "wait", one) for one in ended["result"]["deletions"]]
        gone = [*ended["result"]["retired_undo_points"], *(one["result"]["snapshot"] for one in asked)]
        for uuid in gone:
            assert self.machine.snapshots[UUID(uuid)].automatic
            self.machine.remove(UUID(uuid))

    def delete(self) -> None:
        kept = self.one()
        self.stack.coldframe("snapshot", "delete", str(kept.uuid))
        self.machine.remove(kept.uuid)

    def delete_at_the_next_stop(self) -> None:
        kept = self.one()
        self.guest.start()
        asked = self.stack.coldframe("snapshot", "delete", str(kept.uuid))
        assert asked["state"] == "queued"
        self.guest.destroy()
        assert self.stack.coldframe("operation", "wait", asked["uuid"])["state"] == "succeeded"
        self.machine.remove(kept.uuid)
        self.measure()

    def check(self) -> None:
        """The VM and all snapshots read as they did, each file is somebody's, and verification finds nothing."""
        found = seen(self.guest)
        assert {**self.machine.disks, **self.machine.host_files} == found
        items = self.stack.coldframe("snapshot", "list", str(self.guest.uuid))["items"]
        assert {UUID(one["uuid"]) for one in items} == self.machine.snapshots.keys()
        needed = {file for target in TARGETS for file in self.chain(self.guest.disk_path(target))}
        for one in items:
            kept = self.machine.snapshots[UUID(one["uuid"])]
            assert (one["current"], one["automatic"]) == (kept.uuid == self.machine.current, kept.automatic)
            assert one["parent"] == (kept.parent and str(kept.parent))
            needed |= self.check_snapshot(one, kept)
        images = self.stack.host.path(IMAGES).glob(f"*{self.guest.uuid}*")
        assert {path.name for path in images} == {path.name for path in needed}
        told = self.stack.coldframe("snapshot", "verify", "--vm", str(self.guest.uuid))["items"]
        # That the VM's own firmware state is newer than the copy of it is a remark, and true here.
        assert [one for one in told if one["severity"] != "info"] == []

    def check_snapshot(self, one: dict[str, Any], kept: Kept) -> set[Path]:
        """Compare the disks of a snapshot; return the files that it needs."""
        paths = {volume["target"]: Path(volume["path"]) for volume in one["volumes"]}
        assert {target: disks.sha256_raw(path, self.stack.host.run) for target, path in paths.items()} == kept.disks
        return {file for path in paths.values() for file in self.chain(path)}

    def chain(self, path: Path) -> list[Path]:
        """List an image and all that it stands on."""
        said = self.stack.host.run(["qemu-img", "info", "--backing-chain", "--output=json", path]).stdout
        return [Path(one["filename"]) for one in json.loads(said)]


@pytest.mark.case("D3")
@pytest.mark.case("R3")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_histories_of_a_real_vm_lose_nothing_and_leave_nothing(stack: Stack, vm: Vm, seed: int) -> None:
    history = History(stack, run_once(vm(disks=3)), seed)
    while len(history.steps) < STEPS:
        history.step()
    for kept in list(history.machine.snapshots.values()):
        stack.coldframe("snapshot", "delete", str(kept.uuid))
        history.machine.remove(kept.uuid)
        history.check()
