"""Verification and the doctor on a real VM: what an administrator, or bad luck, does to its files is named."""

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e.conftest import Stack, change_at_rest, run_once, seen
from tests.lab.daemons import ControllerDaemon
from tests.lab.guest import Guest

pytestmark = pytest.mark.real
Vm = Callable[..., Guest]


def doctor(stack: Stack, guest: Guest, *words: str) -> dict[str, dict[str, Any]]:
    """Run the doctor; return its findings about one guest, or about no guest at all, by code."""
    done = stack.controller.coldframe("doctor", "--json", *words, check=False)
    items = json.loads(done.stdout)["items"]
    wrong = [one for one in items if one["severity"] != "info" and one["done"] is None]
    assert done.returncode == (1 if wrong else 0), items
    return {one["code"]: one for one in items if one["vm"] in {str(guest.uuid), None}}


def verify(stack: Stack, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Verify; return the exit status and the findings by code."""
    done = stack.controller.coldframe("snapshot", "verify", "--json", *words, check=False)
    return done.returncode, {one["code"]: one for one in json.loads(done.stdout)["items"]}


def frozen(stack: Stack, taken: dict[str, Any], target: str = "vda") -> Path:
    """Return the real path of a snapshot's frozen file."""
    (path,) = [Path(volume["path"]) for volume in taken["volumes"] if volume["target"] == target]
    return stack.host.path(path)


def test_a_snapshot_is_sound_while_its_vm_is_off_and_while_it_runs(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm())
    taken = stack.coldframe("snapshot", "create", str(guest.uuid), "one")
    assert verify(stack, taken["uuid"]) == (0, {})
    guest.start()
    assert verify(stack, "--vm", str(guest.uuid)) == (0, {})
    assert doctor(stack, guest) == {}
    guest.destroy()
    guest.wait_off()


def test_a_removed_and_an_altered_frozen_file_are_named_and_back_in_place_all_is_well(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm())
    taken = stack.coldframe("snapshot", "create", str(guest.uuid), "one")
    gone, altered = frozen(stack, taken), frozen(stack, taken, "vdb")
    aside = gone.with_name(f"{gone.name}.aside")
    times = altered.stat()
    gone.rename(aside)
    os.utime(altered)
    status, found = verify(stack, taken["uuid"])
    assert (status, set(found)) == (1, {"frozen-file-missing", "frozen-file-altered"})
    assert found["frozen-file-missing"]["path"] == taken["volumes"][0]["path"]
    assert {"frozen-file-missing", "frozen-file-altered", "vm-unreadable"} <= set(doctor(stack, guest, "--repair"))
    aside.rename(gone)
    os.utime(altered, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify(stack, taken["uuid"]) == (0, {})
    assert doctor(stack, guest) == {}


def test_damaged_metadata_of_a_frozen_file_is_found_by_a_deep_look(stack: Stack, vm: Vm) -> None:
    guest = vm(uefi=False, tpm=False, disks=1)
    taken = stack.coldframe("snapshot", "create", str(guest.uuid))
    path = frozen(stack, taken)
    times, whole = path.stat(), path.read_bytes()
    table = int.from_bytes(whole[40:48], "big")
    damaged = bytearray(whole)
    damaged[table : table + 8] = (0x8000_0000_0000_0000 | 0x7FFF_0000).to_bytes(8, "big")
    path.write_bytes(bytes(damaged))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify(stack, taken["uuid"], "--quick") == (0, {})
    status, found = verify(stack, taken["uuid"])
    assert status == 1
    assert "image-corrupt" in found
    path.write_bytes(whole)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_an_administrators_own_snapshot_on_top_is_named_and_costs_nothing(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm())
    first = stack.coldframe("snapshot", "create", str(guest.uuid), "ours")
    before = seen(guest)
    stack.host.virsh("snapshot-create-as", str(guest.uuid), "theirs", "--disk-only", "--no-metadata")
    admins = [guest.disk_path(target) for target in ("vda", "vdb")]
    change_at_rest(guest, b"after theirs")
    after = seen(guest)
    found = doctor(stack, guest)
    assert set(found) - {"host-file-dirty"} == {"foreign-overlay"}
    assert str(admins[0]) in found["foreign-overlay"]["what"] or str(admins[1]) in found["foreign-overlay"]["what"]
    assert verify(stack, first["uuid"])[0] == 0
    assert "foreign-overlay" in doctor(stack, guest, "--repair")
    assert [guest.disk_path(target) for target in ("vda", "vdb")] == admins
    assert seen(guest) == after

    second = stack.coldframe("snapshot", "create", str(guest.uuid), "with theirs")
    assert doctor(stack, guest) == {}
    stack.coldframe("snapshot", "revert", first["uuid"], "--no-undo-point")
    assert seen(guest) == before
    stack.coldframe("snapshot", "revert", second["uuid"], "--no-undo-point")
    assert seen(guest) == after


def test_a_moved_disk_is_named_and_left_where_it_is(stack: Stack, vm: Vm) -> None:
    guest = vm(uefi=False, tpm=False, disks=1)
    stack.coldframe("snapshot", "create", str(guest.uuid))
    ours = guest.disk_path("vda")
    moved = ours.with_name(f"moved-{uuid4()}.qcow2")
    real = stack.host.path
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", real(moved), "32M"], check=True)
    xml = stack.host.virsh("dumpxml", "--inactive", str(guest.uuid)).stdout
    stack.host.virsh("define", "/dev/stdin", input=xml.replace(str(ours), str(moved)))
    found = doctor(stack, guest)
    assert found["disk-elsewhere"]["path"] == str(moved)
    assert found["stray-overlay"]["path"] == str(ours)
    assert found["stray-overlay"]["safe"] is False
    doctor(stack, guest, "--repair")
    assert real(ours).exists()
    stack.host.virsh("define", "/dev/stdin", input=xml)
    real(moved).unlink()
    assert doctor(stack, guest) == {}


def test_stray_overlays_are_named_and_what_ended_work_put_aside_is_removed(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm(disks=1))
    taken = stack.coldframe("snapshot", "create", str(guest.uuid))
    top = guest.disk_path("vda")
    stray = top.with_name(f"gone.cf-{uuid4()}.vda.qcow2")
    aside = guest.nvram.with_name(f".coldframe-{'ab' * 8}-{'0' * 16}")
    for path in (stray, aside):
        stack.host.path(path).write_bytes(b"")
    os.utime(stack.host.path(aside), (0, 0))
    found = doctor(stack, guest)
    assert (found["stray-overlay"]["path"], found["staged-leftover"]["path"]) == (str(stray), str(aside))
    found = doctor(stack, guest, "--repair")
    assert found["staged-leftover"]["done"]
    assert not stack.host.path(aside).exists()
    assert stack.host.path(stray).exists()
    stack.host.path(stray).unlink()
    assert doctor(stack, guest) == {}
    assert verify(stack, taken["uuid"]) == (0, {})


@pytest.mark.case("D9")
@pytest.mark.case("D10")
def test_a_protected_snapshot_stays_and_a_forgotten_vm_keeps_its_disks(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm())
    taken = stack.coldframe("snapshot", "create", str(guest.uuid))
    before = seen(guest)
    assert stack.coldframe("snapshot", "protect", taken["uuid"])["protected"] is True
    for words in (("snapshot", "delete", taken["uuid"]), ("vm", "forget", str(guest.uuid))):
        code, problem = stack.refused(*words)
        assert (code, problem["code"]) == (4, "snapshot-protected")
    stack.coldframe("snapshot", "unprotect", taken["uuid"])
    assert stack.coldframe("vm", "forget", str(guest.uuid))["uuid"] == str(guest.uuid)
    assert seen(guest) == before
    assert all(frozen(stack, taken, volume["target"]).exists() for volume in taken["volumes"])
    xml = stack.host.virsh("dumpxml", "--inactive", str(guest.uuid)).stdout
    stack.host.virsh("define", "/dev/stdin", input=xml)
    stack.known(guest)
    assert stack.coldframe("snapshot", "list", str(guest.uuid)) == {"items": []}
    assert doctor(stack, guest) == {}


def test_volumes_show_every_file_with_its_snapshot(stack: Stack, vm: Vm) -> None:
    guest = vm(uefi=False, tpm=False, disks=1)
    taken = [stack.coldframe("snapshot", "create", str(guest.uuid))["uuid"] for _ in range(2)]
    (volume,) = stack.coldframe("vm", "volumes", str(guest.uuid))["items"]
    assert volume["depth"] == 3
    assert [file["snapshots"] for file in volume["chain"]] == [[], [taken[1]], [taken[0]]]
    assert volume["allocated_bytes"] == sum(file["allocated_bytes"] for file in volume["chain"]) > 0


@contextmanager
def kept_to_another(stack: Stack) -> Iterator[None]:
    """Let another controller than the stack's own have its host for a while."""
    stack.agent.run("forget-controller")
    try:
        yield
    finally:
        stack.agent.run("forget-controller")


@pytest.mark.case("F8")
def test_a_database_restored_from_an_older_copy_is_compared_with_what_the_host_did_since(
    stack: Stack, vm: Vm, tmp_path: Path
) -> None:
    guest = run_once(vm(disks=1))
    with kept_to_another(stack), ControllerDaemon(tmp_path / "controller") as controller:
        controller.add_host(stack.agent)
        later = Stack(stack.host, stack.agent, controller)
        keep = later.coldframe("snapshot", "create", str(guest.uuid), "keep")
        doomed = later.coldframe("snapshot", "create", str(guest.uuid), "doomed")
        change_at_rest(guest, b"since")
        database, copy = controller.root / "controller.db", tmp_path / "copy.db"
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        later.coldframe("snapshot", "delete", doomed["uuid"])
        lost = later.coldframe("snapshot", "create", str(guest.uuid), "lost")
        before = seen(guest)

        controller.stop()
        for path in controller.root.glob("controller.db*"):
            path.unlink()
        copy.rename(database)
        controller.start()
        later.known(guest)
        found = doctor(later, guest)
        assert (found["deleted-on-host"]["snapshot"], found["deleted-on-host"]["safe"]) == (doomed["uuid"], True)
        assert (found["snapshot-not-recorded"]["snapshot"], found["snapshot-not-recorded"]["safe"]) == (
            lost["uuid"],
            False,
        )
        assert doctor(later, guest, "--repair")["deleted-on-host"]["done"]
        assert [one["uuid"] for one in later.coldframe("snapshot", "list", str(guest.uuid))["items"]] == [keep["uuid"]]
        assert "deleted-on-host" not in doctor(later, guest)
        assert seen(guest) == before
