"""A snapshot of a real VM as one portable file: out, lost, and back, through the coldframe command."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Stack, change_at_rest, run_once, seen, targets
from tests.lab.guest import Guest
from tests.lab.paths import IMAGES

pytestmark = pytest.mark.real
Vm = Callable[..., Guest]


def shell(directory: Path, command: str) -> str:
    return subprocess.run(["sh", "-ec", command], cwd=directory, capture_output=True, text=True, check=True).stdout


def lose(stack: Stack, guest: Guest) -> None:
    """Lose the VM with all that it had on the host, and everything that is known of it."""
    guest.remove()
    for image in stack.host.path(IMAGES).glob(f"{guest.name}*"):
        image.unlink()
    stack.coldframe("vm", "forget", str(guest.uuid))
    stack.host.guests.append(guest)  # it comes back


@pytest.mark.case("X7")
def test_vm_comes_back_whole_from_one_portable_file(stack: Stack, vm: Vm, tmp_path: Path) -> None:
    guest = run_once(vm())
    change_at_rest(guest, b"archived")
    archived = seen(guest)
    taken = stack.coldframe("snapshot", "create", str(guest.uuid), "kept")
    change_at_rest(guest, b"later")
    guest.start()  # frozen files are only read: the VM may run
    stack.coldframe("snapshot", "export", taken["uuid"], str(tmp_path / "flat"))
    stack.coldframe("snapshot", "export", taken["uuid"], str(tmp_path / "chain"), "--chain")
    guest.destroy()
    for name in ("flat", "chain"):
        (tmp_path / f"{name}.d").mkdir()
        shell(tmp_path / f"{name}.d", f"zstd -q -d -c ../{name} | tar -x && sha256sum --quiet -c SHA256SUMS")
        for target in targets(guest):
            command = f"qemu-img convert -f qcow2 -O raw disks/{target}.qcow2 raw && sha256sum raw && rm raw"
            assert shell(tmp_path / f"{name}.d", command).split()[0] == archived[target]
    host = stack.coldframe("vm", "show", str(guest.uuid))["host"]
    _, problem = stack.refused("snapshot", "import", str(tmp_path / "flat"), "--host", host)
    assert problem["code"] == "vm-known"
    lose(stack, guest)
    made = stack.coldframe("snapshot", "import", str(tmp_path / "chain"), "--host", host)
    assert (made["name"], made["vm"], made["state"], made["current"]) == ("kept", str(guest.uuid), "ready", True)
    again = Guest(stack.host, guest.shape, guest.uuid)
    assert seen(again) == archived
    change_at_rest(again, b"after")
    stack.coldframe("snapshot", "revert", made["uuid"])
    assert seen(again) == archived
    again.boot()
    again.shutdown()
    guest.undefine()
    for image in stack.host.path(IMAGES).glob(f"{guest.name}.cf-*"):
        image.unlink()
