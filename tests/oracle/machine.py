"""The state machine: what may happen to VMs and their snapshots, in any order."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.oracle.choices import Choices
from tests.oracle.model import Kept, Machine
from tests.oracle.world import DISKS, TARGETS, World

#: A tree of so many is taken apart before it grows on.
MOST_SNAPSHOTS = 9
MOST_MACHINES = 3
_REFUSED = ("failed", "domain-running"), ("failed", "snapshot-partly-deleted")


@dataclass(frozen=True)
class Action:
    """One kind of step: how often it is taken, and when it may be."""

    weight: int
    ready: Callable[["History"], bool]
    work: Callable[["History", Choices], Awaitable[str]]


class History(RuleBasedStateMachine):
    """One random history. ``lengths`` collects how many steps each had that came to its end."""

    lengths: list[int] = []

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.world = World(Path(tempfile.mkdtemp(prefix="coldframe-oracle-")))
        self.steps: list[str] = []
        self.sound = False
        self.runner.run(self.world.open())
        self.sound = True

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Do one thing and look at everything."""
        self.sound = False
        self.runner.run(self._step(Choices(data, len(self.steps))))
        self.sound = True

    async def _step(self, choices: Choices) -> None:
        able = [name for name, one in ACTIONS.items() for _ in range(one.weight) if one.ready(self)]
        name = choices.one(able)
        self.steps.append(name)
        said = await ACTIONS[name].work(self, choices)
        self.steps[-1] = f"{name}: {said}"
        await self.world.check()

    def teardown(self) -> None:
        """Let the history come to its end, or tell what had happened when it broke."""
        try:
            if self.sound:
                self.runner.run(self._end())
                self.lengths.append(len(self.steps))
            else:
                print("\n".join(self.steps))  # noqa: T201 - pytest shows it with the failure
        finally:
            self.runner.run(self.world.close())
            self.runner.close()

    async def _end(self) -> None:
        """Stop what runs, ask the doctor, and delete every snapshot, one after the other."""
        for machine in self.machines(running=True):
            await self._stop(machine)
            await self.world.check()
        await self.world.check_doctor()
        for machine in sorted(self.machines(), key=lambda one: one.name):
            for kept in sorted(machine.snapshots.values(), key=lambda one: one.uuid.int % 97):
                await self._edit(kept, {"protected": False})
                await self._delete_now(machine, kept)
                await self.world.check()

    # Who there is

    def machines(self, *, running: bool = False) -> list[Machine]:
        """List the VMs that run, or that do not."""
        return [one for one in self.world.machines.values() if one.running == running]

    def kept(self, *, running: bool | None = False) -> list[tuple[Machine, Kept]]:
        """List the snapshots, of VMs that are off unless told otherwise."""
        able = [one for one in self.world.machines.values() if running in {None, one.running}]
        return [(machine, kept) for machine in able for kept in machine.snapshots.values()]

    def clones(self) -> list[Machine]:
        """List the VMs that were cloned, and are off."""
        return [one for one in self.machines() if one.name != "win11"]

    def can_clone(self) -> bool:
        """Whether there is a snapshot of all disks, and not too many VMs."""
        return len(self.world.machines) < MOST_MACHINES and any(
            one.disks.keys() == DISKS.keys() for _, one in self.kept()
        )

    def grown(self) -> list[tuple[Machine, Kept]]:
        """List the snapshots of VMs whose tree has some to give."""
        return [(machine, kept) for machine, kept in self.kept() if len(machine.snapshots) > 3]

    # What a guest does

    async def _start(self, choices: Choices, machine: Machine) -> str:
        await self.world.house.start(machine.uuid)
        machine.running = True
        return await self._write(choices, machine)

    async def _write(self, choices: Choices, machine: Machine) -> str:
        """Write as the guest of a running VM does, and write down what it sees then."""
        said = [await self._write_disk(choices, machine, target) for target in TARGETS if choices.number(8)]
        self.world.house.write_host_files(machine.uuid, choices.number(256), choices.number(256))
        await self.world.measure(machine)
        return f"{machine.name}, {'; '.join(said)}"

    async def _write_disk(self, choices: Choices, machine: Machine, target: str) -> str:
        commands: list[str] = []
        for _ in range(1 + choices.number(3)):
            kind = choices.one(["write", "write", "write -P 77", "write -z -u", "discard"])
            kind += f" -P {1 + choices.number(255)}" if kind == "write" else ""
            start = DISKS[target] // 512 * choices.number(500) // 500 * 512
            length = min(choices.one([1, 8, 128, 512, 2048]) * 512, DISKS[target] - start)
            commands += ["-c", f"{kind} -q {start} {length}"]
        top = self.world.house.tops(machine.uuid)[target]
        process = await asyncio.create_subprocess_exec("qemu-io", "-f", "qcow2", "-d", "unmap", *commands, str(top))
        assert await process.wait() == 0
        return f"{target} {' '.join(commands[1::2])}"

    async def boot(self, choices: Choices) -> str:
        machine = choices.one(self.machines())
        said = await self._start(choices, machine)
        await self._stop(machine)
        return said

    async def boot_and_leave_running(self, choices: Choices) -> str:
        """Nothing that needs the VM off is done to one that runs."""
        machine = choices.one(self.machines())
        said = await self._start(choices, machine)
        ended = await self.world.house.operate("POST", f"/v1/vms/{machine.uuid}/snapshots", {})
        assert (ended["state"], ended["error"]["code"]) == ("failed", "domain-running"), ended
        for uuid in list(machine.snapshots)[:1]:
            ended = await self.world.house.operate("POST", f"/v1/snapshots/{uuid}/revert", {})
            assert (ended["state"], ended["error"]["code"]) in _REFUSED, ended
        return said

    async def stop(self, choices: Choices) -> str:
        machine = choices.one(self.machines(running=True))
        said = f"{machine.name}, for which {len(machine.parked)} deletions wait"
        await self._stop(machine)
        return said

    async def _stop(self, machine: Machine) -> None:
        """Stop a VM, and see what becomes of the deletions that waited for it."""
        await self.world.house.stop(machine.uuid)
        machine.running = False
        await self.world.house.settle()
        for operation, uuid in machine.parked.items():
            self._deleted(machine, uuid, await self.world.house.ended(operation))
        machine.parked.clear()

    # What an operator does

    async def create(self, choices: Choices) -> str:
        machine = choices.one([one for one in self.machines() if len(one.snapshots) < MOST_SNAPSHOTS])
        exclude = choices.one([None, None, None, *TARGETS])
        host_files = choices.one(["required", "required", "none"])
        labels = {"step": str(len(self.steps))}
        body = {"exclude": [exclude] if exclude else [], "host_files": host_files, "labels": labels}
        ended = await self.world.house.operate("POST", f"/v1/vms/{machine.uuid}/snapshots", body)
        assert ended["state"] == "succeeded", ended
        uuid = UUID(ended["result"]["snapshot"])
        kept = machine.add(uuid, {*TARGETS} - {exclude}, host_files=host_files == "required")
        kept.labels, machine.current = labels, uuid
        return f"{uuid} of {machine.name}, without {exclude}, host files {host_files}"

    async def revert(self, choices: Choices) -> str:
        machine, kept = choices.one(self.kept())
        return await self._revert(machine, kept, choices, choices.one([None, None, {"vda"}, {"vda", "vdc"}]))

    async def undo(self, choices: Choices) -> str:
        """Take back the last revert, or an earlier one whose undo point is still there."""
        machine, kept = choices.one([pair for pair in self.kept() if pair[1].automatic])
        return await self._revert(machine, kept, choices, None)

    async def _revert(self, machine: Machine, kept: Kept, choices: Choices, volumes: set[str] | None) -> str:
        wanted = None if volumes is None else (volumes & kept.disks.keys()) or set(list(kept.disks)[:1])
        undo_point = choices.one([True, False])
        body = {"undo_point": undo_point, "volumes": None if wanted is None else sorted(wanted)}
        said = f"{machine.name} to {kept.uuid}, undo point {undo_point}, volumes {wanted}"
        ended = await self.world.house.operate("POST", f"/v1/snapshots/{kept.uuid}/revert", body)
        if kept.altered & (wanted or kept.disks.keys()):
            assert (ended["state"], ended["error"]["code"]) == ("failed", "snapshot-partly-deleted"), ended
            return f"{said}, refused"
        assert (ended["state"], ended["result"].get("remarks")) == ("succeeded", []), ended
        if undo_point:
            made = UUID(ended["result"]["undo_point"])
            machine.add(made, wanted or set(kept.disks), host_files=wanted is None, automatic=True)
        machine.go_back(kept, wanted)
        machine.base_kept = False
        await self._follow_retired(machine, ended["result"])
        await self.world.check_nothing_to_merge(machine)
        return said

    async def _follow_retired(self, machine: Machine, result: dict[str, Any]) -> None:
        """Only older undo points that nobody protects went with a revert, or go by a deletion that it asked for."""
        asked = [await self.world.house.ended(operation) for operation in result["deletions"]]
        assert {one["state"] for one in asked} <= {"succeeded"}, asked
        for text in [*result["retired_undo_points"], *(one["result"]["snapshot"] for one in asked)]:
            retired = machine.snapshots[UUID(text)]
            assert (retired.automatic, retired.protected) == (True, False)
            assert text != result["undo_point"]
            machine.remove(retired.uuid)

    async def clone(self, choices: Choices) -> str:
        """Make another VM of a snapshot, and start it once: a TPM that was reset comes into being then."""
        machine, kept = choices.one([pair for pair in self.kept() if pair[1].disks.keys() == DISKS.keys()])
        name, mode, tpm = (
            f"clone{len(self.steps)}",
            choices.one(["linked", "linked", "full"]),
            choices.one(["reset", "copy"]),
        )
        said = f"{kept.uuid} of {machine.name} as {name}, {mode}, TPM {tpm}"
        body = {"names": [name], "mode": mode, "tpm": tpm}
        ended = await self.world.house.operate("POST", f"/v1/snapshots/{kept.uuid}/clone", body)
        if kept.altered or not kept.host_files:
            code = "snapshot-partly-deleted" if kept.altered else "host-file-missing"
            assert (ended["state"], ended["error"]["code"]) == ("failed", code), ended
            return f"{said}, refused"
        assert ended["state"] == "succeeded", ended
        made = Machine(UUID(ended["result"]["clones"][0]["vm"]), name, dict(kept.disks), {})
        self.world.machines[made.uuid] = made
        await self.world.check_copy(made, kept, tpm)
        said = f"{said}; {await self._start(choices, made)}"
        await self._stop(made)
        return said

    async def forget(self, choices: Choices) -> str:
        """Delete a clone's snapshots, undefine it and forget it: what it stood on is its VM's again."""
        machine = choices.one(self.clones())
        for kept in list(machine.snapshots.values()):
            await self._edit(kept, {"protected": False})
            await self._delete_now(machine, kept)
        await self.world.forget(machine)
        return machine.name

    async def delete(self, choices: Choices) -> str:
        machine, kept = choices.one(self.grown())
        return await self._delete_now(machine, kept)

    async def delete_what_the_vm_stands_on(self, choices: Choices) -> str:
        machine, kept = choices.one([pair for pair in self.grown() if pair[0].current == pair[1].uuid])
        return await self._delete_now(machine, kept)

    async def _delete_now(self, machine: Machine, kept: Kept) -> str:
        path = f"/v1/snapshots/{kept.uuid}"
        if kept.protected:
            await self._refused_as_protected("DELETE", path)
            return f"{kept.uuid} of {machine.name}, refused"
        self._deleted(machine, kept.uuid, await self.world.house.operate("DELETE", path))
        await self.world.check_nothing_to_merge(machine)
        return f"{kept.uuid} of {machine.name}"

    async def _refused_as_protected(self, method: str, path: str) -> None:
        status, problem = await self.world.house.call(method, path)
        assert (status, problem["code"]) == (409, "snapshot-protected")

    def _deleted(self, machine: Machine, uuid: UUID, ended: dict[str, Any]) -> None:
        """Follow a deletion that was not meant to fail: it did what was asked, or was told why not."""
        kept = machine.snapshots.get(uuid)
        if ended["state"] == "succeeded":
            assert kept is not None
            assert ended["result"]["remarks"] == []
            machine.remove(uuid)
            machine.base_kept = False
        elif kept is None:
            assert ended["error"]["code"] == "snapshot-not-found", ended
        else:
            assert (kept.protected, ended["error"]["code"]) == (True, "snapshot-protected"), ended

    async def delete_several_at_once(self, choices: Choices) -> str:
        """One of them is asked for twice."""
        pairs = [choices.one(self.grown()) for _ in range(1 + choices.number(3))]
        pairs = [pair for pair in [*pairs, pairs[0]] if not pair[1].protected]
        asked = [self.world.house.call("DELETE", f"/v1/snapshots/{kept.uuid}") for _, kept in pairs]
        answers = await asyncio.gather(*asked)
        assert {status for status, _ in answers} <= {202}, answers
        for (machine, kept), (_, operation) in zip(pairs, answers, strict=True):
            self._deleted(machine, kept.uuid, await self.world.house.ended(operation["uuid"]))
        return ", ".join(str(kept.uuid) for _, kept in pairs)

    async def fail_to_delete(self, choices: Choices) -> str:
        """An I/O error meets one disk's merge, before or after it did its work; the call is repeated now or later."""
        machine, kept = choices.one([pair for pair in self.grown() if not pair[1].protected])
        command, disk = choices.one(["commit", "rebase"]), choices.one(TARGETS)
        fault = f"{command} {disk} {choices.one(['before', 'after'])}"
        self.world.failing.write_text(f"{fault}\n")
        try:
            ended = await self.world.house.operate("DELETE", f"/v1/snapshots/{kept.uuid}")
        finally:
            self.world.failing.unlink()
        if ended["state"] == "succeeded":  # that disk needed no merge of this kind, or only one of a hidden base
            machine.remove(kept.uuid)
            machine.base_kept = ended["result"]["remarks"] != []
            return f"{kept.uuid}, {fault}: done, remarks {ended['result']['remarks']}"
        assert ended["error"]["code"] == "disks-not-deleted", ended
        assert disk in ended["error"]["detail"]
        altered = await self.world.altered(kept)
        assert command == "commit" or altered == kept.altered
        kept.altered = altered
        if choices.number(2):
            await self.world.check()
            return f"{fault}, repeated: {await self._delete_now(machine, kept)}"
        return f"{kept.uuid} of {machine.name}, {fault}"

    async def park_a_deletion(self, choices: Choices) -> str:
        machine, kept = choices.one(self.kept(running=True))
        status, found = await self.world.house.call("DELETE", f"/v1/snapshots/{kept.uuid}?wait=30")
        if kept.protected:
            assert (status, found["code"]) == (409, "snapshot-protected")
            return f"{kept.uuid}, refused"
        assert (status, found["state"], found["step"]) == (202, "queued", "waiting for the VM to stop"), found
        machine.parked[found["uuid"]] = kept.uuid
        return f"{kept.uuid} of {machine.name}"

    async def withdraw_a_deletion(self, choices: Choices) -> str:
        machine, operation = choices.one(
            [(one, parked) for one in self.machines(running=True) for parked in one.parked]
        )
        status, found = await self.world.house.call("DELETE", f"/v1/operations/{operation}")
        assert status in {200, 202}, found
        assert (await self.world.house.ended(operation))["state"] == "cancelled"
        return str(machine.parked.pop(operation))

    async def ungroup(self, choices: Choices) -> str:
        _, kept = choices.one(self.kept(running=None))
        path = f"/v1/snapshots/{kept.uuid}/ungroup"
        if kept.protected:
            await self._refused_as_protected("POST", path)
            return f"{kept.uuid}, refused"
        ended = await self.world.house.operate("POST", path)
        assert ended["state"] == "succeeded", ended
        kept.host_files = {}
        return str(kept.uuid)

    async def edit(self, choices: Choices) -> str:
        _, kept = choices.one(self.kept(running=None))
        changes: dict[str, Any] = {"labels": {"edited": str(len(self.steps))}}
        changes |= choices.one([{"protected": True}, {"protected": False}, {"name": "kept"}, {}])
        await self._edit(kept, changes)
        return f"{kept.uuid}, {changes}"

    async def _edit(self, kept: Kept, changes: dict[str, Any]) -> None:
        status, found = await self.world.house.call("PATCH", f"/v1/snapshots/{kept.uuid}", changes)
        assert status == 200, found
        for key, value in changes.items():
            setattr(kept, key, value)

    async def restart(self, choices: Choices) -> str:
        del choices
        await self.world.house.restart()
        return "both daemons"

    # When it may be done

    def can_create(self) -> bool:
        return any(len(one.snapshots) < MOST_SNAPSHOTS for one in self.machines())


ACTIONS = {
    "boot": Action(9, lambda it: bool(it.machines()), History.boot),
    "boot-and-leave-running": Action(2, lambda it: bool(it.machines()), History.boot_and_leave_running),
    "stop": Action(5, lambda it: bool(it.machines(running=True)), History.stop),
    "create": Action(6, History.can_create, History.create),
    "revert": Action(5, lambda it: bool(it.kept()), History.revert),
    "undo": Action(2, lambda it: any(one.automatic for _, one in it.kept()), History.undo),
    "clone": Action(3, History.can_clone, History.clone),
    "forget": Action(1, lambda it: bool(it.clones()), History.forget),
    "delete": Action(3, lambda it: bool(it.grown()), History.delete),
    "delete-current": Action(
        2, lambda it: any(one.current == kept.uuid for one, kept in it.grown()), History.delete_what_the_vm_stands_on
    ),
    "delete-several": Action(1, lambda it: bool(it.grown()), History.delete_several_at_once),
    "fail-to-delete": Action(3, lambda it: any(not one.protected for _, one in it.grown()), History.fail_to_delete),
    "park": Action(3, lambda it: bool(it.kept(running=True)), History.park_a_deletion),
    "withdraw": Action(1, lambda it: any(one.parked for one in it.machines(running=True)), History.withdraw_a_deletion),
    "ungroup": Action(1, lambda it: bool(it.kept(running=None)), History.ungroup),
    "edit": Action(2, lambda it: bool(it.kept(running=None)), History.edit),
    "restart": Action(1, lambda it: True, History.restart),
}
