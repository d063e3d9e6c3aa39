"""Two hosts shown to a reader: ``make demo-fleet``.

Two private hosts share a directory of images. A VM grows a branched tree of snapshots, one in the middle is deleted,
one is cloned with a TPM of its own, and the VM moves to the other host with its firmware state. Commands and checks are
shown as in the first demo.
"""

import shlex
import sys
from typing import Any
from uuid import UUID

from tests.e2e.show import Failed, Show, fingerprints, perform
from tests.lab.disks import write
from tests.lab.errors import LabError
from tests.lab.fleet import Fleet, Member
from tests.lab.guest import VENDOR, Guest, Shape

INDEX = 0x1500016
VM, CLONE, COPY = "web", "web-test", "web-copy"


class Demo:
    """The story on two hosts."""

    def __init__(self, show: Show, fleet: Fleet) -> None:
        self.show, self.fleet = show, fleet
        self.guest: Guest
        self.seen: dict[str, dict[str, str]] = {}

    def run(self) -> None:
        """Tell it from beginning to end."""
        self.enrol()
        self.grow()
        self.delete_in_the_middle()
        self.clone()
        self.carry()
        self.move()

    # chapters

    def enrol(self) -> None:
        """Look at the hosts, and let the VM run once on the first."""
        self.show.title("Two KVM hosts, a and b, with one image directory; a VM with UEFI, TPM 2.0 and two disks on a")
        self.guest = self.fleet.a.host.define_guest(VM)
        self.coldframe("host", "list")
        self.boot(self.guest)
        self.show.guest(f'setvar Colour -guid {VENDOR} -nv -bs =L"green"')
        self.guest.set_variable("Colour", "green")
        self.power_off(self.guest)
        self.show.aside(f"swtpm and tpm2_nvwrite put 'sealed' into the TPM's index {INDEX:#x}")
        self.guest.tpm.write_index(INDEX, b"sealed")
        hosts = self.json("host", "list")["items"]
        reachable = [one["name"] for one in hosts if one["reachable"]]
        self.show.check("the controller reaches both agents", holds=reachable == ["a", "b"], found=hosts)

    def grow(self) -> None:
        """Make a tree: installed, updated, tested, and a branch beside them."""
        self.show.title("A tree with two branches")
        for name in ("installed", "updated", "tested"):
            self.live(name)
            self.take(name)
        self.coldframe("snapshot", "revert", f"{VM}/updated", "--no-undo-point")
        self.live("experiment")
        self.take("experiment")
        self.coldframe("snapshot", "tree", VM)
        parents = self.parents()
        wanted = {"installed": None, "updated": "installed", "tested": "updated", "experiment": "updated"}
        self.show.check("the tree has two branches on 'updated'", holds=parents == wanted, found=parents)

    def delete_in_the_middle(self) -> None:
        """Delete the node between the root and both branches; every other snapshot keeps its bytes."""
        self.show.title("A snapshot in the middle goes, and nobody else loses a byte")
        self.coldframe("snapshot", "delete", f"{VM}/updated", "--dry-run")
        self.coldframe("snapshot", "delete", f"{VM}/updated")
        self.coldframe("snapshot", "tree", VM)
        parents = self.parents()
        wanted = {"installed": None, "tested": "installed", "experiment": "installed"}
        self.show.check("both branches now stand on 'installed'", holds=parents == wanted, found=parents)
        for name in ("installed", "tested", "experiment"):
            self.coldframe("snapshot", "revert", f"{VM}/{name}", "--no-undo-point")
            found = fingerprints(self.guest)
            self.show.check(f"{name!r} is byte for byte what it was", holds=found == self.seen[name], found=found)

    def clone(self) -> None:
        """Clone one branch's tip; the clone is another machine."""
        self.show.title("A linked clone: the same disks, another machine")
        self.coldframe("snapshot", "clone", f"{VM}/tested", CLONE, "--tpm", "reset")
        self.coldframe("vm", "list")
        uuid = self.json("vm", "show", CLONE)["uuid"]
        twin = Guest(self.fleet.a.host, Shape(name=CLONE), UUID(uuid))
        self.fleet.a.host.guests.append(twin)
        disks = [twin.disk(target).sha256() for target in ("vda", "vdb")]
        wanted = [self.seen["tested"][f"disk {target}"] for target in ("vda", "vdb")]
        self.show.check("its disks read as 'tested' does", holds=disks == wanted, found=disks)
        self.show.check("it is another VM", holds=twin.uuid != self.guest.uuid, found=uuid)
        self.boot(twin)
        self.show.guest(f"setvar Colour -guid {VENDOR}")
        found = twin.get_variable("Colour")
        self.show.output(str(found))
        self.show.check("its firmware knows the variable", holds=found == "green", found=found)
        self.power_off(twin)
        own = twin.tpm.ek_public() != self.guest.tpm.ek_public()
        self.show.check("its TPM has an endorsement key of its own", holds=own)
        sealed = twin.tpm.read_index(INDEX)
        self.show.check("and holds nothing of the other's secrets", holds=sealed is None, found=sealed)

    def carry(self) -> None:
        """Take one snapshot out as a file and bring it in on the other host, as another VM."""
        self.show.title("A snapshot as one file, carried to host b")
        file = str(self.fleet.controller.root / "installed.tar.zst")
        self.coldframe("snapshot", "export", f"{VM}/installed", file)
        self.coldframe("snapshot", "import", file, "--host", "b", "--as-new", COPY)
        copy = Guest(self.fleet.b.host, Shape(name=COPY), UUID(self.json("vm", "show", COPY)["uuid"]))
        self.fleet.b.host.guests.append(copy)
        disks = [copy.disk(target).sha256() for target in ("vda", "vdb")]
        wanted = [self.seen["installed"][f"disk {target}"] for target in ("vda", "vdb")]
        self.show.check("its disks read as 'installed' does", holds=disks == wanted, found=disks)

    def move(self) -> None:
        """Place the VM on the other host; firmware variables and TPM go with it."""
        self.show.title("The VM moves to host b, with its firmware state")
        key = self.guest.tpm.ek_public()
        before = fingerprints(self.guest)
        self.coldframe("vm", "place", VM, "b")
        self.coldframe("vm", "list")
        there = Guest(self.fleet.b.host, self.guest.shape, self.guest.uuid)
        self.fleet.b.host.guests.append(there)
        found = fingerprints(there)
        self.show.check("disks, NVRAM and TPM on b are byte for byte those of a", holds=found == before, found=found)
        self.show.check("the TPM has the same endorsement key", holds=there.tpm.ek_public() == key)
        sealed = there.tpm.read_index(INDEX)
        self.show.check("and the same sealed index", holds=sealed == b"sealed", found=sealed)
        self.boot(there, self.fleet.b)
        self.show.guest(f"setvar Colour -guid {VENDOR}")
        colour = there.get_variable("Colour")
        self.show.output(str(colour))
        self.show.check("its UEFI variable is there", holds=colour == "green", found=colour)
        self.power_off(there)
        self.coldframe("snapshot", "revert", f"{VM}/experiment", "--no-undo-point")
        found = fingerprints(there)
        self.show.check("its snapshots work on b too", holds=found == self.seen["experiment"], found=found)

    # what the chapters do

    def live(self, text: str) -> None:
        """Write to both disks while the guest is off, as it would while it runs."""
        self.show.aside(f"the VM writes {text!r} onto both disks")
        for target in ("vda", "vdb"):
            write(self.guest.disk_path(target), 16 << 20, text.encode().ljust(512), self.guest.host.run)

    def take(self, name: str) -> None:
        """Take a snapshot, and remember what the VM sees."""
        self.seen[name] = fingerprints(self.guest)
        self.coldframe("snapshot", "create", VM, name)

    def parents(self) -> dict[str, str | None]:
        """Return each snapshot's parent, by name."""
        items = self.json("snapshot", "list", VM)["items"]
        names = {one["uuid"]: one["name"] for one in items}
        return {one["name"]: names.get(one["parent"]) for one in items}

    def boot(self, guest: Guest, on: Member | None = None) -> None:
        """Start a VM to the UEFI shell."""
        self.show.command(f"virsh start {guest.name}" + (f"   # on {on.name}" if on else ""))
        guest.boot()

    def power_off(self, guest: Guest) -> None:
        """Let the guest power itself off."""
        self.show.guest("reset -s")
        guest.shutdown()

    def coldframe(self, *words: str) -> None:
        """Run the operator's command and show both."""
        self.show.command(shlex.join(["coldframe", *words]))
        self.show.output(self.fleet.controller.coldframe(*words).stdout)

    def json(self, *words: str) -> Any:
        """Run the operator's command for a program."""
        return self.fleet.controller.json(*words)


def on_two_hosts(show: Show) -> None:
    """Set the stage for it."""
    with Fleet() as fleet:
        try:
            Demo(show, fleet).run()
        except (Failed, LabError):
            logs = [fleet.a.agent.log(), fleet.b.agent.log(), fleet.controller.log()]
            sys.stderr.write("\nlogs of a, b and the controller:\n" + "\n".join(logs) + "\n")
            raise


def main() -> int:
    """Run the demo and return its exit status."""
    return perform("demo-fleet", on_two_hosts)


if __name__ == "__main__":
    sys.exit(main())
