"""The main job shown to a reader: ``make demo``.

A private host, a VM with UEFI, TPM and two disks, a snapshot, changes to everything, a revert, and proof that
everything is back. Each command is printed as one would type it; each ``✓`` is a check that could have failed. Ends
with exit status 0 and ``demo: N checks passed``, or with the first check that failed and exit status 1.
"""

import json
import shlex
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

from tests.e2e.show import Failed, Show, fingerprints, perform
from tests.lab.daemons import AgentDaemon, ControllerDaemon
from tests.lab.errors import LabError
from tests.lab.guest import VENDOR, Guest
from tests.lab.host import LabHost

INDEX = 0x1500016
VM = "win11"
NAME = "before-update"


class Demo:
    """The story on one host."""

    def __init__(self, show: Show, host: LabHost, agent: AgentDaemon, controller: ControllerDaemon) -> None:
        self.show, self.host, self.agent, self.controller = show, host, agent, controller
        self.vm: Guest

    def run(self) -> None:
        """Tell it from beginning to end."""
        self.enrol()
        self.live("green", "as it was", b"sealed first")
        before = fingerprints(self.vm)
        self.take(before)
        self.refuse_a_start(before)
        self.live("red", "overwritten", b"sealed later")
        self.show.check("now disks, NVRAM and TPM are all different", holds=self.all_changed(before))
        self.go_back(before)
        self.look("green", "as it was", b"sealed first")

    # chapters

    def enrol(self) -> None:
        """Define the VM and tell the controller of the host."""
        self.show.title("A KVM host with one VM: UEFI, TPM 2.0, two qcow2 disks")
        self.vm = self.host.define_guest(VM)
        self.coldframe("host", "add", self.host.name, self.agent.url, "--agent-token-file", str(self.agent.token_file))
        self.coldframe("host", "list")
        self.coldframe("vm", "list")
        hosts = self.controller.json("host", "list")["items"]
        self.show.check("the controller reaches the host's agent", holds=hosts[0]["reachable"], found=hosts)
        hook = hosts[0]["facts"]["hook"]
        self.show.check("libvirt's start hook is in force", holds=hook == "ok", found=hook)

    def live(self, colour: str, text: str, secret: bytes) -> None:
        """Let the guest change its NVRAM and a disk; change the other disk and the TPM while it is off."""
        self.show.title(f"The VM lives: a variable {colour!r}, a file {text!r}, a TPM index {secret.decode()!r}")
        self.boot()
        self.show.guest(f'setvar Colour -guid {VENDOR} -nv -bs =L"{colour}"')
        self.vm.set_variable("Colour", colour)
        self.show.guest(f"echo {text} >a fs0:\\note.txt")
        self.vm.write_file("note.txt", text)
        self.power_off()
        self.show.aside(
            f"while it is off, swtpm and tpm2_nvwrite put {secret.decode()!r} into the TPM's index {INDEX:#x}"
        )
        self.vm.tpm.write_index(INDEX, secret)
        self.show.aside("and qemu-io writes it onto the second disk as well")
        self.vm.disk("vdb").write(1 << 20, secret)

    def take(self, before: dict[str, str]) -> None:
        """Take the snapshot."""
        self.show.title("One command freezes all of it")
        self.coldframe("snapshot", "create", VM, NAME, "--description", "before the monthly update")
        self.coldframe("snapshot", "tree", VM)
        found = self.controller.json("snapshot", "show", f"{VM}/{NAME}")
        targets = [one["target"] for one in found["volumes"]]
        self.show.check("the snapshot holds both disks", holds=targets == ["vda", "vdb"], found=targets)
        files = found["host_files"]
        held = files["state"] == "complete" and files["expected"] == ["nvram", "tpm"] and not files["missing"]
        self.show.check("the snapshot holds NVRAM and TPM and says that it is complete", holds=held, found=files)
        owned = self.controller.json("backup", "list", "--owner", found["uuid"])["items"]
        kinds = {(one["owner_kind"], one["type"]) for one in owned}
        wanted = {("snapshot", "nvram"), ("snapshot", "tpm")}
        self.show.check("its backup files belong to the snapshot itself", holds=kinds == wanted, found=kinds)
        changed = self.changed(before)
        self.show.check("taking it changed nothing that the VM sees", holds=not changed, found=changed)

    def refuse_a_start(self, before: dict[str, str]) -> None:
        """Try to start the VM in the middle of a transaction."""
        self.show.title("In the middle of a transaction the VM cannot start")
        transaction = uuid4()
        body = {"kind": "snapshot", "vm": str(self.vm.uuid), "snapshot": str(uuid4())}
        self.show.aside("the agent is told, as its controller would, to prepare a snapshot, and then left waiting")
        state = self.call_agent("PUT", f"/v1/transactions/{transaction}", body)["state"]
        self.show.check("the agent has prepared a transaction", holds=state == "prepared", found=state)
        self.show.command(f"virsh start {VM}")
        refused = self.host.virsh("start", VM, check=False)
        self.show.output(refused.stdout + refused.stderr)
        self.show.check("the start is refused", holds=refused.returncode != 0, found=refused.stdout)
        words = "coldframe" in refused.stderr.lower() and "snapshot" in refused.stderr
        self.show.check("whoever tried to start it reads why", holds=words, found=refused.stderr)
        state = self.call_agent("POST", f"/v1/transactions/{transaction}/abort")["state"]
        self.show.check("the transaction is undone", holds=state == "aborted", found=state)
        changed = self.changed(before)
        self.show.check("and nothing has changed", holds=not changed, found=changed)

    def go_back(self, before: dict[str, str]) -> None:
        """Revert."""
        self.show.title("One command brings all of it back")
        self.coldframe("snapshot", "revert", f"{VM}/{NAME}")
        self.coldframe("snapshot", "tree", VM)
        for part, digest in fingerprints(self.vm).items():
            same = digest == before[part]
            self.show.check(f"{part} is byte for byte what it was", holds=same, found=digest)
        tree = self.controller.json("snapshot", "list", VM)["items"]
        automatic = [one["name"] for one in tree if one["automatic"]]
        self.show.check("the state before the revert is kept as an undo point", holds=len(automatic) == 1, found=tree)

    def look(self, colour: str, text: str, secret: bytes) -> None:
        """Look at what the VM itself finds."""
        self.show.title("What the VM itself finds")
        self.show.aside(f"tpm2_nvread of index {INDEX:#x}, before the start")
        found = self.vm.tpm.read_index(INDEX)
        self.show.output((found or b"").decode(errors="replace"))
        self.show.check("the TPM index is that of the snapshot", holds=found == secret, found=found)
        self.boot()
        self.show.guest(f"setvar Colour -guid {VENDOR}")
        variable = self.vm.get_variable("Colour")
        self.show.output(str(variable))
        self.show.check("the UEFI variable is that of the snapshot", holds=variable == colour, found=variable)
        self.show.guest("type fs0:\\note.txt")
        note = self.vm.read_file("note.txt")
        self.show.output(str(note))
        self.show.check("the file is that of the snapshot", holds=(note or "").strip() == text, found=note)
        self.power_off()

    # what the chapters do

    def coldframe(self, *words: str) -> None:
        """Run the operator's command and show both."""
        self.show.command(shlex.join(["coldframe", *words]))
        self.show.output(self.controller.coldframe(*words).stdout)

    def boot(self) -> None:
        """Start the VM to the UEFI shell."""
        self.show.command(f"virsh start {VM}")
        self.vm.boot()

    def power_off(self) -> None:
        """Let the guest power itself off."""
        self.show.guest("reset -s")
        self.vm.shutdown()

    def call_agent(self, method: str, path: str, body: object = None) -> dict[str, str]:
        """Call the agent on its unix socket, where root needs no token; raises LabError unless it succeeds."""
        command = ["curl", "-sS", "--fail-with-body", "--unix-socket", str(self.agent.settings["socket"]), "-X", method]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        command.append(f"http://agent{path}")
        self.show.command(shlex.join(command))
        found: dict[str, str] = json.loads(self.host.run([*command]).stdout)
        return found

    def changed(self, before: dict[str, str]) -> list[str]:
        """Return the parts that are no longer as before."""
        return [part for part, digest in fingerprints(self.vm).items() if digest != before[part]]

    def all_changed(self, before: dict[str, str]) -> bool:
        """Return whether nothing is as before."""
        return self.changed(before) == list(before)


def on_one_host(show: Show) -> None:
    """Set the stage for it."""
    with (
        tempfile.TemporaryDirectory(prefix="cf-demo-", dir="/tmp") as root,
        LabHost("kvm1") as host,
        AgentDaemon(host) as agent,
        ControllerDaemon(Path(root, "controller")) as controller,
    ):
        try:
            Demo(show, host, agent, controller).run()
        except (Failed, LabError):
            sys.stderr.write(f"\nagent's log:\n{agent.log()}\ncontroller's log:\n{controller.log()}\n")
            raise


def main() -> int:
    """Run the demo and return its exit status."""
    return perform("demo", on_one_host)


if __name__ == "__main__":
    sys.exit(main())
