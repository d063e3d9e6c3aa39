"""Mixed operations on several VMs while agent and controller die: ``python -m tests.e2e.storm CYCLES SEED``.

A cycle begins an operation on each of some VMs, kills the agent, the controller or both with SIGKILL at a random
moment, starts them again and waits until every operation has ended. Then everything is looked over: what each snapshot
and each VM reads, guards, the agent's transactions, files on disk, records, and what ``doctor`` says. One VM is started
and cut off. What each should read is a model kept here, which knows nothing of how Coldframe works.
"""

import http.client
import json
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.conftest import change_at_rest, run_once, targets
from tests.lab.daemons import AgentDaemon, ControllerDaemon, Daemon
from tests.lab.guest import Guest
from tests.lab.host import LabHost
from tests.lab.paths import IMAGES, PYTHON
from tests.lab.waiting import wait_until

VMS = 3
MOST_SNAPSHOTS = 5
#: The longest time into an operation at which a process dies; most of them take less.
LONGEST_LIFE_S = 0.8
RECOVERED_WITHIN_S = 60.0
OPEN = ("queued", "running")
#: Prints {path: sha256 of what a guest reads} for the images named.
READ = """
import hashlib, json, os, subprocess, sys
found = {}
for path in sys.argv[1:]:
    raw = f"/tmp/storm-{os.getpid()}"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    with open(raw, "rb") as file:
        found[path] = hashlib.file_digest(file, "sha256").hexdigest()
    os.unlink(raw)
print(json.dumps(found))
"""
#: Prints {path: the files that it stands on, itself first} for the images named.
CHAINS = """
import json, os, subprocess, sys
found = {}
for path in sys.argv[1:]:
    told = ["qemu-img", "info", "--backing-chain", "--output=json", path]
    chain = subprocess.run(told, check=True, capture_output=True)
    found[path] = [os.path.realpath(one["filename"]) for one in json.loads(chain.stdout)]
print(json.dumps(found))
"""
Parts = dict[str, str]


class Wrong(Exception):
    """Something is not as it must be."""


@dataclass
class Machine:
    """What one VM and its snapshots must read, by part: the disks, ``nvram`` and ``tpm``."""

    guest: Guest
    present: Parts = field(default_factory=dict)
    tree: dict[str, Parts] = field(default_factory=dict)


@dataclass(frozen=True)
class Begun:
    """An operation that was asked for; ``target`` is a snapshot's name."""

    machine: Machine
    kind: str
    target: str
    id: str


@dataclass
class Tally:
    """What happened, to be told in the end."""

    cycles: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)

    def told(self) -> str:
        """Say it in a few lines."""
        times = sorted(self.recoveries_s)
        return (
            f"storm: {self.cycles} cycles, {sum(self.kills.values())} kills {dict(sorted(self.kills.items()))}\n"
            f"storm: operations {dict(sorted(self.operations.items()))}\n"
            f"storm: {len(times)} recoveries, median {statistics.median(times):.2f} s, worst {times[-1]:.2f} s\n"
        )


class Storm:
    """One host, its daemons, and the model."""

    def __init__(self, host: LabHost, agent: AgentDaemon, controller: ControllerDaemon, seed: int) -> None:
        self.host, self.agent, self.controller = host, agent, controller
        self.dice = random.Random(seed)  # noqa: S311 - a storm is repeatable, not secret
        self.tally = Tally()
        self.names = 0
        self.machines = [Machine(run_once(host.define_guest(f"storm-{n}", size_mib=8))) for n in range(VMS)]

    # one cycle

    def settle(self) -> None:
        """Let the controller learn of the VMs, and remember what they read."""
        self.controller.add_host(self.agent)
        wait_until("all VMs known", lambda: len(self.get("/v1/vms")["items"]) == VMS, 30)
        self.wait_ended()
        for machine in self.machines:
            machine.present = self.read(machine, {})[0]

    def cycle(self) -> None:
        """Begin, kill, recover, look."""
        busy = self.dice.sample(self.machines, self.dice.randint(1, VMS))
        begun = [self.begin(machine) for machine in busy]
        time.sleep(self.dice.uniform(0, LONGEST_LIFE_S))
        victims: list[Daemon] = self.dice.choice([[self.agent], [self.controller], [self.agent, self.controller]])
        for victim in victims:
            victim.kill()
        self.tally.kills["both" if len(victims) > 1 else victims[0].name] += 1
        since = time.monotonic()
        for victim in self.dice.sample(victims, len(victims)):
            victim.start()
        self.wait_ended()
        self.tally.recoveries_s.append(time.monotonic() - since)
        for one in begun:
            self.judge(one)
        for machine in self.machines:
            if machine not in busy:
                self.compare(machine)
        self.look_over()
        self.start_one()
        self.tally.cycles += 1

    def begin(self, machine: Machine) -> Begun:
        """Ask for something."""
        kinds = ["create"] * (1 if len(machine.tree) < MOST_SNAPSHOTS else 0) + ["sync"]
        kinds += ["revert", "delete"] * (1 if machine.tree else 0) + ["delete"] * (len(machine.tree) > MOST_SNAPSHOTS)
        kind = self.dice.choice(kinds)
        vm, target = machine.guest.uuid, ""
        if kind == "create":
            self.names += 1
            target = f"s{self.names}"
            change_at_rest(machine.guest, target.encode().ljust(16))
            machine.present = self.read(machine, {})[0]
            answer = self.ask("POST", f"/v1/vms/{vm}/snapshots", {"name": target})
        elif kind == "sync":
            answer = self.ask("POST", f"/v1/vms/{vm}/sync")
        else:
            target = self.dice.choice(sorted(machine.tree))
            uuid = self.snapshots(machine)[target]["uuid"]
            undo = self.dice.random() < 0.5
            answer = (
                self.ask("POST", f"/v1/snapshots/{uuid}/revert", {"undo_point": undo})
                if kind == "revert"
                else self.ask("DELETE", f"/v1/snapshots/{uuid}")
            )
        return Begun(machine, kind, target, answer["uuid"])

    def wait_ended(self) -> None:
        """Wait until no operation is open."""
        wait_until("the end of all operations", self.all_ended, RECOVERED_WITHIN_S, every_s=0.05)

    def all_ended(self) -> bool:
        """Whether both daemons answer and nothing is open."""
        with suppress(OSError, http.client.HTTPException):
            # One look: an operation that asks for another ends once that is in the queue.
            return all(one["state"] not in OPEN for one in self.get("/v1/operations?limit=100")["items"])
        return False

    # what must hold

    def judge(self, begun: Begun) -> None:
        """Compare the VM with what may have become of an operation, and keep what did."""
        machine, tree = begun.machine, self.snapshots(begun.machine)
        outcome = self.get(f"/v1/operations/{begun.id}")["state"]
        self.tally.operations[f"{begun.kind} {outcome}"] += 1
        before = machine.present
        present, frozen = self.read(machine, tree)
        if begun.kind == "create":
            self.require(outcome, done=begun.target in tree, what=begun)
            if begun.target in tree:
                machine.tree[begun.target] = before
        elif begun.kind == "delete":
            self.require(outcome, done=begun.target not in tree, what=begun)
            if begun.target not in tree:
                del machine.tree[begun.target]
        elif begun.kind == "revert":
            wanted = machine.tree[begun.target]
            if before != wanted:
                self.require(outcome, done=present == wanted, what=begun)
            machine.present = wanted if present == wanted else before
        for name, shown in tree.items():
            if shown["automatic"] and begun.kind == "revert" and name not in machine.tree:
                machine.tree[name] = before
        for name in [name for name in machine.tree if name not in tree and begun.kind == "revert"]:
            del machine.tree[name]  # an undo point that a newer one retired; only those go by themselves
        self.require_equal(machine, present, frozen)

    def require(self, outcome: str, *, done: bool, what: Begun) -> None:
        """Hold that an operation did what it says it did."""
        if (outcome == "succeeded" and not done) or (outcome in ("failed", "cancelled") and done):
            raise Wrong(f"{what.kind} {what.target} of {what.machine.guest.name} ended as {outcome}, done: {done}")

    def compare(self, machine: Machine) -> None:
        """Hold that a VM that nothing was asked of is as it was."""
        self.require_equal(machine, *self.read(machine, self.snapshots(machine)))

    def require_equal(self, machine: Machine, present: Parts, frozen: dict[str, Parts]) -> None:
        """Hold that a VM and all its snapshots read what the model says."""
        if present != machine.present:
            raise Wrong(f"{machine.guest.name} reads {present}, not {machine.present}")
        if frozen != machine.tree:
            raise Wrong(f"the snapshots of {machine.guest.name} read {frozen}, not {machine.tree}")

    def look_over(self) -> None:
        """Hold that nothing was left behind, not even a remark of doctor's once the host was looked at again."""
        until = time.monotonic() + RECOVERED_WITHIN_S
        while left := self.left():
            if time.monotonic() > until:
                raise Wrong(f"left behind: {left}")
            time.sleep(0.1)

    def left(self) -> dict[str, Any]:
        """Return what lies about, by where."""
        guards = [path.name for path in (self.agent.state_dir / "guards").iterdir()]
        unended = [one for one in self.agent_get("/v1/transactions")["items"] if one["ended_at"] is None]
        findings = [one for one in self.get("/v1/doctor")["items"] if one["severity"] != "info"]
        stray = {path.name for path in self.host.path(IMAGES).iterdir()} - self.reachable()
        found = {"guards": guards, "transactions": unended, "doctor": findings, "files": stray}
        return {where: what for where, what in found.items() if what}

    def reachable(self) -> set[str]:
        """Name the files that a VM or a snapshot stands on."""
        tops = [str(m.guest.disk_path(target)) for m in self.machines for target in targets(m.guest)]
        frozen = [v["path"] for m in self.machines for s in self.snapshots(m).values() for v in s["volumes"]]
        return {Path(one).name for chain in self.images(CHAINS, [*tops, *frozen]).values() for one in chain}

    def start_one(self) -> None:
        """Start a VM, cut it off, and take what it made of its firmware state for its own."""
        machine = self.dice.choice(self.machines)
        machine.guest.start()
        machine.guest.destroy()
        self.wait_ended()
        machine.present = self.read(machine, {})[0]

    # reading

    def read(self, machine: Machine, tree: dict[str, Any]) -> tuple[Parts, dict[str, Parts]]:
        """Return what a VM reads now, and what each of its snapshots holds."""
        tops = {target: str(machine.guest.disk_path(target)) for target in targets(machine.guest)}
        frozen = {name: {v["target"]: v["path"] for v in one["volumes"]} for name, one in tree.items()}
        read = self.images(READ, [*tops.values(), *(path for parts in frozen.values() for path in parts.values())])
        present = {target: read[path] for target, path in tops.items()}
        present |= {one["type"]: one["sha256"] for one in self.host_files(machine)}
        held = {
            name: {target: read[path] for target, path in parts.items()} | self.backups(tree[name]["uuid"])
            for name, parts in frozen.items()
        }
        return present, held

    def images(self, program: str, paths: list[str]) -> dict[str, Any]:
        """Look at images by other means than the agent's."""
        found: dict[str, Any] = json.loads(self.host.run([PYTHON, "-I", "-c", program, *paths]).stdout)
        return found

    def host_files(self, machine: Machine) -> list[dict[str, Any]]:
        """Ask the agent for a VM's host files."""
        items: list[dict[str, Any]] = self.agent_get(f"/v1/vms/{machine.guest.uuid}/host-files")["items"]
        return items

    def backups(self, snapshot: str) -> Parts:
        """Return the hashes of a snapshot's backup files."""
        return {one["type"]: one["sha256"] for one in self.get(f"/v1/backup-files?owner={snapshot}")["items"]}

    def snapshots(self, machine: Machine) -> dict[str, Any]:
        """Return a VM's snapshots by name; every one must be whole."""
        items = self.get(f"/v1/vms/{machine.guest.uuid}/snapshots?limit=500")["items"]
        unfinished = [one for one in items if one["state"] != "ready" or one["host_files"]["state"] != "complete"]
        if unfinished:
            raise Wrong(f"no operation is open and these are not whole: {unfinished}")
        return {one["name"]: one for one in items}

    def get(self, path: str) -> Any:
        """Read from the controller."""
        return self.call(self.controller.connection(30), "GET", path, self.controller.token)

    def agent_get(self, path: str) -> Any:
        """Read from the agent."""
        return self.call(self.agent.connection(30), "GET", path, self.agent.token)

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Ask the controller for an operation; it answers before anything is killed."""
        answer: dict[str, Any] = self.call(self.controller.connection(30), method, path, self.controller.token, body)
        return answer

    @staticmethod
    def call(connection: http.client.HTTPConnection, method: str, path: str, token: str, body: Any = None) -> Any:
        """Call a daemon; raises Wrong with its Problem unless it agrees."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        if method == "POST":
            headers["Idempotency-Key"] = secrets.token_hex(8)
        try:
            connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
            answer = connection.getresponse()
            data = json.loads(answer.read() or b"null")
        finally:
            connection.close()
        if answer.status >= 400:
            raise Wrong(f"{method} {path}: {answer.status} {data}")
        return data


def run(cycles: int, seed: int) -> Tally:
    """Let a storm of so many cycles pass over a host of its own; raises Wrong at the first thing that is."""
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory(prefix="cf-storm-", dir="/tmp"))
        host = stack.enter_context(LabHost(f"storm{seed}"))
        agent = stack.enter_context(AgentDaemon(host))
        controller = stack.enter_context(ControllerDaemon(Path(root, "controller")))
        storm = Storm(host, agent, controller, seed)
        storm.settle()
        try:
            for _ in range(cycles):
                storm.cycle()
        except Exception:
            sys.stderr.write(f"after {storm.tally.cycles} cycles:\n{agent.log()[-9000:]}\n{controller.log()[-9000:]}\n")
            raise
        return storm.tally


if __name__ == "__main__":
    sys.stdout.write(run(int(sys.argv[1]), int(sys.argv[2])).told())
