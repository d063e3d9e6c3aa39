"""``make bench``: what a whole snapshot costs, against plain virsh on the same shape of VM in the same run.

What deletions move is measured in ``merges``.

Coldframe's figure is one HTTP request to the controller on a kept connection, from its first byte to the end of the
operation: disks, NVRAM, TPM, journal, records, all synced. The baseline is one run of ``virsh snapshot-create-as
--disk-only --atomic``, which freezes the disks alone. Both work on VMs of their own, in turns, so both chains grow
alike and a slow moment of the machine hits both. Prints a table and writes build/bench.json.
"""

import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import merges
from tests.lab import requirements
from tests.lab.daemons import AgentDaemon, ControllerDaemon
from tests.lab.disks import run_here
from tests.lab.guest import Guest
from tests.lab.host import LabHost
from tests.lab.paths import PROJECT

RUNS = 15
WARM_UP = 2
MIB = 1 << 20
OUT = PROJECT / "build" / "bench.json"


@dataclass(frozen=True)
class Row:
    """One line of the report: medians in ``unit``, and ``ratio`` = value / baseline_value; below 1 is faster."""

    name: str
    unit: str
    value: float
    baseline: str
    baseline_value: float
    ratio: float


def timed(work: Callable[[], None]) -> float:
    """Return how long it took, in ms."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def by_virsh(host: LabHost, guest: Guest) -> Callable[[], None]:
    """Return what takes one snapshot by virsh, straight on the host's socket."""
    numbers = count(1)  # virsh's own names have whole seconds and collide

    def take() -> None:
        words = ["snapshot-create-as", guest.name, f"s{next(numbers)}", "--disk-only", "--atomic"]
        run_here(["virsh", "-q", "-c", host.uri, *words])

    return take


def by_coldframe(controller: ControllerDaemon, guest: Guest) -> Callable[[], None]:
    """Return what takes one snapshot through the API; raises RuntimeError unless it is whole."""
    connection = controller.connection(60)
    headers = {"Authorization": f"Bearer {controller.token}", "Content-Type": "application/json"}

    def take() -> None:
        connection.request("POST", f"/v1/vms/{guest.uuid}/snapshots?wait=30", b"{}", headers)
        answer = connection.getresponse()
        operation = json.loads(answer.read())
        if operation.get("state") != "succeeded":
            raise RuntimeError(f"the snapshot failed: {operation}")

    return take


def prepare(host: LabHost, name: str, disks: int) -> Guest:
    """Define a VM and start it once, so that its NVRAM and TPM exist."""
    guest = host.define_guest(name, disks=disks)
    guest.start()
    guest.destroy()
    return guest


def measure(host: LabHost, controller: ControllerDaemon, disks: int) -> Row:
    """Measure one shape."""
    ours, theirs = prepare(host, f"cf-{disks}", disks), prepare(host, f"virsh-{disks}", disks)
    wait_known(controller, ours)
    take, baseline = by_coldframe(controller, ours), by_virsh(host, theirs)
    pairs = [(timed(take), timed(baseline)) for _ in range(WARM_UP + RUNS)][WARM_UP:]
    value, base = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Row(
        name=f"snapshot create, {disks} disks, NVRAM and TPM",
        unit="ms",
        value=round(value, 1),
        baseline=f"virsh snapshot-create-as --disk-only --atomic, {disks} disks",
        baseline_value=round(base, 1),
        ratio=round(value / base, 3),
    )


def wait_known(controller: ControllerDaemon, guest: Guest) -> None:
    """Wait until the controller has heard that the VM is off."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        connection = controller.connection(10)
        try:
            connection.request("GET", f"/v1/vms/{guest.uuid}", headers={"Authorization": f"Bearer {controller.token}"})
            answer = connection.getresponse()
            vm = json.loads(answer.read())
        except http.client.HTTPException:
            vm = {}
        finally:
            connection.close()
        if vm.get("state") == "shut-off":
            return
        time.sleep(0.2)
    raise RuntimeError(f"the controller does not know {guest.name} after a minute")


def merge_rows(root: Path) -> list[Row]:
    """Measure what deletions move, as rows against each of the two fixed directions."""
    return [
        Row(
            name=f"snapshot delete, {one.name}",
            unit="MiB moved",
            value=round(one.coldframe / MIB, 1),
            baseline=baseline,
            baseline_value=round(moved / MIB, 1),
            ratio=round(one.coldframe / moved, 3),
        )
        for one in merges.measure(root)
        for baseline, moved in (
            ("always rebase", one.always_rebase),
            ("always commit", one.always_commit),
            ("what the smaller of the two holds", one.smaller),
        )
    ]


def report(rows: list[Row]) -> None:
    """Print the table and write the file; a run as root leaves it to the owner of the working tree."""
    table = Table(
        "what", "coldframe", "baseline", "", "ratio", title=f"Medians of {RUNS} runs, on {os.cpu_count()} cores"
    )
    for row in rows:
        table.add_row(row.name, f"{row.value} {row.unit}", row.baseline, f"{row.baseline_value}", f"{row.ratio}")
    Console(width=100).print(table)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    owner = PROJECT.stat()
    for path in (OUT.parent, OUT):
        os.chown(path, owner.st_uid, owner.st_gid)


def main() -> int:
    """Measure, report, and return the exit status."""
    missing = requirements.missing()
    if missing:
        sys.stderr.write("bench: a private libvirt host cannot be made here:\n" + "\n".join(missing) + "\n")
        return 1
    with (
        tempfile.TemporaryDirectory(prefix="cf-bench-", dir="/tmp") as root,
        LabHost("kvm1") as host,
        AgentDaemon(host) as agent,
        ControllerDaemon(Path(root, "controller")) as controller,
    ):
        controller.add_host(agent)
        creations = [measure(host, controller, disks) for disks in (2, 8)]
        report([*creations, *merge_rows(Path(root, "merges"))])
    return 0


if __name__ == "__main__":
    sys.exit(main())
