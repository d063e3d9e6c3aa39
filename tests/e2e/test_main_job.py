"""The main job on a real VM, through the coldframe command: snapshot, change, revert."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from agent.client import AgentClient
from agent.wire.transaction import SnapshotRequest
from tests.e2e.conftest import Stack, change_at_rest, run_once, seen, targets
from tests.lab.guest import Guest
from tests.lab.waiting import wait_until

pytestmark = pytest.mark.real
Vm = Callable[..., Guest]
INDEX = 0x1500016


@pytest.mark.slow
@pytest.mark.case("S1")
@pytest.mark.case("R1")
@pytest.mark.case("R2")
@pytest.mark.case("R8")
def test_guest_finds_everything_as_it_was_at_the_snapshot(stack: Stack, vm: Vm) -> None:
    guest = vm()
    guest.boot()
    guest.set_variable("Colour", "green")
    guest.write_file("note.txt", "before")
    guest.shutdown()
    guest.tpm.write_index(INDEX, b"before")
    frozen = seen(guest)
    taken = stack.coldframe("snapshot", "create", str(guest.uuid), "one")
    assert taken["host_files"] == {"state": "complete", "expected": ["nvram", "tpm"], "missing": [], "reason": None}
    assert [volume["target"] for volume in taken["volumes"]] == ["vda", "vdb"]
    backups = stack.coldframe("backup", "list")["items"]
    owners = {(item["owner_kind"], item["owner_uuid"], item["type"]) for item in backups}
    assert {("snapshot", taken["uuid"], "nvram"), ("snapshot", taken["uuid"], "tpm")} <= owners
    assert not [item for item in backups if item["owner_uuid"] == str(guest.uuid)]

    guest.boot()
    guest.set_variable("Colour", "red")
    guest.set_variable("Later", "yes")
    guest.write_file("note.txt", "after")
    guest.shutdown()
    guest.tpm.write_index(INDEX, b"later!")
    changed = seen(guest)
    assert not set(changed.items()) & set(frozen.items()) - {("vdb", frozen["vdb"])}

    reverted = stack.coldframe("snapshot", "revert", taken["uuid"])
    assert seen(guest) == frozen
    undo = reverted["result"]["undo_point"]
    stack.coldframe("snapshot", "revert", undo)
    assert seen(guest) == changed
    for mark in (b"second", b"third"):
        stack.coldframe("snapshot", "revert", taken["uuid"])
        assert seen(guest) == frozen
        change_at_rest(guest, mark)
    stack.coldframe("snapshot", "revert", taken["uuid"])
    assert guest.tpm.read_index(INDEX) == b"before"
    automatic = [one for one in stack.coldframe("snapshot", "list", str(guest.uuid))["items"] if one["automatic"]]
    assert len(automatic) == 1

    guest.boot()
    assert guest.get_variable("Colour") == "green"
    assert guest.get_variable("Later") is None
    assert guest.read_file("note.txt") == "before"
    guest.shutdown()


@pytest.mark.case("S2")
def test_bios_guest_without_tpm_is_complete_with_nothing_expected(stack: Stack, vm: Vm) -> None:
    guest = vm(uefi=False, tpm=False)
    taken = stack.coldframe("snapshot", "create", str(guest.uuid))
    assert taken["host_files"] == {"state": "complete", "expected": [], "missing": [], "reason": None}
    assert taken["backup_files"] == []


@pytest.mark.case("B1")
def test_guest_without_host_files_is_backed_up_with_an_empty_list(stack: Stack, vm: Vm) -> None:
    guest = vm(uefi=False, tpm=False, disks=1)
    assert stack.coldframe("backup", "create", str(guest.uuid), "--owner", str(uuid4())) == {"items": []}


@pytest.mark.case("B2")
def test_host_files_go_to_two_owners_byte_for_byte(stack: Stack, vm: Vm, tmp_path: Path) -> None:
    guest = run_once(vm(disks=1))
    owners = [str(uuid4()), str(uuid4())]
    made = stack.coldframe("backup", "create", str(guest.uuid), "--owner", owners[0], "--owner", owners[1])["items"]
    assert len(made) == 4
    nvram = guest.host.path(guest.nvram).read_bytes()
    for item in [item for item in made if item["type"] == "nvram"]:
        target = tmp_path / item["uuid"]
        stack.controller.coldframe("backup", "export", item["uuid"], target)
        assert target.read_bytes() == nvram


@pytest.mark.case("S7")
def test_guest_that_is_not_at_rest_is_refused_with_what_to_do(stack: Stack, vm: Vm) -> None:
    guest = vm(disks=1, uefi=False, tpm=False)
    before = guest.disk_path("vda")
    guest.start()
    assert stack.refused("snapshot", "create", str(guest.uuid))[1]["code"] == "domain-running"
    stack.host.virsh("suspend", str(guest.uuid))
    code, problem = stack.refused("snapshot", "create", str(guest.uuid))
    assert (code, problem["code"]) == (4, "domain-paused")
    assert "virsh resume" in problem["detail"]
    stack.host.virsh("resume", str(guest.uuid))
    stack.host.virsh("managedsave", str(guest.uuid))
    problem = stack.refused("snapshot", "create", str(guest.uuid))[1]
    assert problem["code"] == "domain-managed-save"
    assert "managedsave-remove" in problem["detail"]
    assert guest.disk_path("vda") == before
    stack.host.virsh("managedsave-remove", str(guest.uuid))


@pytest.mark.case("R4")
def test_running_guest_is_not_reverted(stack: Stack, vm: Vm) -> None:
    guest = vm(disks=1, uefi=False, tpm=False)
    taken = stack.coldframe("snapshot", "create", str(guest.uuid))
    before = guest.disk_path("vda")
    guest.start()
    assert stack.refused("snapshot", "revert", taken["uuid"])[1]["code"] == "domain-running"
    assert guest.disk_path("vda") == before


@pytest.mark.case("S8")
async def test_start_in_the_middle_is_refused_by_the_hook_and_without_it_by_qemu(
    stack: Stack, vm: Vm, agent_client: AgentClient
) -> None:
    guest = run_once(vm())
    id_ = uuid4()
    await agent_client.put_transaction(id_, SnapshotRequest(vm=guest.uuid, snapshot=uuid4()))
    refused = stack.host.virsh("start", str(guest.uuid), check=False)
    assert refused.returncode != 0
    assert str(id_) in refused.stderr
    assert "snapshot" in refused.stderr
    stack.host.remove_hook()
    try:
        unguarded = stack.host.virsh("start", str(guest.uuid), check=False)
        assert unguarded.returncode != 0
        assert "lock" in unguarded.stderr.lower()
    finally:
        stack.host.install_hook()
    await agent_client.abort(id_)
    guest.start()


@pytest.mark.case("B8")
@pytest.mark.case("B13")
def test_stops_while_the_agent_is_dead_are_worked_off_in_order_once_and_synced(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm(disks=1))
    wait_until("the first stop is logged", lambda: len(stack.events(guest, "vm.stopped")) == 1, 20)
    stack.agent.kill()
    run_once(guest)
    run_once(guest)
    stack.agent.start()
    wait_until("the spool is drained", lambda: len(stack.events(guest, "vm.stopped")) == 3, 20)
    types = [
        line["type"]
        for line in sorted(
            (e for t in ("vm.starting", "vm.started", "vm.stopped") for e in stack.events(guest, t)),
            key=lambda line: line["seq"],
        )
    ][-6:]
    assert types == ["vm.starting", "vm.started", "vm.stopped"] * 2

    def synced() -> bool:
        files = stack.coldframe("vm", "show", str(guest.uuid))["host_files"]
        return {one["type"] for one in files if one["sha256"] and one["dirty_since"] is None} == {"nvram", "tpm"}

    wait_until("both host files are synced", synced, 30, every_s=0.5)
    assert len(stack.events(guest, "vm.stopped")) == 3


@pytest.mark.case("B8")
def test_host_file_that_cannot_be_read_keeps_neither_the_other_from_being_saved_nor_the_guest_from_stopping(
    stack: Stack, vm: Vm
) -> None:
    guest = vm(disks=1)
    guest.start()
    guest.destroy()
    guest.host.path(guest.tpm_dir / "tpm2-00.permall").write_bytes(b"torn")
    stack.coldframe("vm", "sync", str(guest.uuid))
    files = {one["type"]: one for one in stack.coldframe("vm", "show", str(guest.uuid))["host_files"]}
    assert files["nvram"]["sha256"]
    assert files["nvram"]["reason"] is None
    assert "header" in files["tpm"]["reason"]


@pytest.mark.case("S5")
@pytest.mark.case("B7")
def test_damaged_tpm_is_refused_by_name_or_marked_partial(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm(disks=1))
    state = guest.host.path(guest.tpm_dir / "tpm2-00.permall")
    state.write_bytes(state.read_bytes()[:-1])
    before = guest.disk_path("vda")
    problem = stack.refused("snapshot", "create", str(guest.uuid))[1]
    assert problem["code"] == "host-file-damaged"
    assert "tpm" in problem["detail"]
    assert guest.disk_path("vda") == before
    taken = stack.coldframe("snapshot", "create", str(guest.uuid), "--host-files", "best-effort")
    assert taken["host_files"]["state"] == "partial"
    assert taken["host_files"]["missing"] == ["tpm"]
    assert "tpm" in taken["host_files"]["reason"]


@pytest.mark.case("R6")
def test_tpm_added_after_a_complete_snapshot_is_removed_by_the_revert_and_is_in_the_undo_point(
    stack: Stack, vm: Vm
) -> None:
    guest = run_once(vm(disks=1, tpm=False))
    taken = stack.coldframe("snapshot", "create", str(guest.uuid))
    xml = stack.host.virsh("dumpxml", "--inactive", str(guest.uuid)).stdout
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>"
    stack.host.virsh("define", "/dev/stdin", input=xml.replace("</devices>", tpm))
    run_once(guest)
    guest.tpm.write_index(INDEX, b"newborn")
    reverted = stack.coldframe("snapshot", "revert", taken["uuid"])
    assert reverted["result"]["removed"] == ["tpm"]
    assert not guest.host.path(guest.tpm_dir).exists()
    stack.coldframe("snapshot", "revert", reverted["result"]["undo_point"])
    assert guest.tpm.read_index(INDEX) == b"newborn"


@pytest.mark.case("R9")
def test_one_volume_alone_goes_back_and_says_that_host_files_were_left_alone(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm())
    taken = stack.coldframe("snapshot", "create", str(guest.uuid))
    before = seen(guest)
    change_at_rest(guest, b"changed")
    changed = seen(guest)
    reverted = stack.coldframe("snapshot", "revert", taken["uuid"], "--volume", "vdb")
    assert reverted["result"]["host_files"] == "left-alone"
    assert seen(guest) == {**changed, "vdb": before["vdb"]}


@pytest.mark.case("R3")
def test_every_node_of_a_branched_tree_is_reached_and_the_tree_tells_where_the_guest_stands(
    stack: Stack, vm: Vm
) -> None:
    guest = run_once(vm())
    nodes: dict[str, tuple[str, dict[str, str]]] = {}

    def take(name: str) -> None:
        change_at_rest(guest, name.encode())
        nodes[name] = stack.coldframe("snapshot", "create", str(guest.uuid), name)["uuid"], seen(guest)

    def go(name: str) -> None:
        stack.coldframe("snapshot", "revert", nodes[name][0], "--no-undo-point")
        assert seen(guest) == nodes[name][1]
        assert stack.coldframe("vm", "show", str(guest.uuid))["current_snapshot"] == nodes[name][0]

    take("root")
    take("left")
    go("root")
    take("right")
    for name in ("left", "right", "root", "right"):
        go(name)
    parents = {one["name"]: one["parent"] for one in stack.coldframe("snapshot", "list", str(guest.uuid))["items"]}
    assert parents == {"root": None, "left": nodes["root"][0], "right": nodes["root"][0]}


@pytest.mark.case("D1")
def test_deleted_snapshots_take_their_files_and_backups_along_and_nothing_else(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm())
    uuids = []
    for mark in (b"one", b"two", b"three"):
        change_at_rest(guest, mark)
        uuids.append(stack.coldframe("snapshot", "create", str(guest.uuid), mark.decode())["uuid"])
    change_at_rest(guest, b"now")
    now = seen(guest)
    for uuid in (uuids[1], uuids[0], uuids[2]):
        stack.coldframe("snapshot", "delete", uuid)
        assert seen(guest) == now
        assert stack.coldframe("backup", "list", "--owner", uuid)["items"] == []
    images = [path.name for path in stack.host.path(guest.disk_path("vda").parent).glob(f"{guest.uuid}-*")]
    assert len(images) == len(targets(guest))
    guest.start()


@pytest.mark.case("D8")
def test_second_delete_says_gone(stack: Stack, vm: Vm) -> None:
    guest = vm(disks=1, uefi=False, tpm=False)
    uuid = stack.coldframe("snapshot", "create", str(guest.uuid))["uuid"]
    stack.coldframe("snapshot", "delete", uuid)
    code, problem = stack.refused("snapshot", "delete", uuid)
    assert (code, problem["code"]) == (3, "snapshot-not-found")


@pytest.mark.case("D7")
def test_ungroup_takes_the_backup_files_and_leaves_usable_volumes(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm(disks=1))
    owner = str(uuid4())
    stack.coldframe("backup", "create", str(guest.uuid), "--owner", owner)
    taken = stack.coldframe("snapshot", "create", str(guest.uuid))
    frozen = seen(guest)["vda"]
    stack.coldframe("snapshot", "ungroup", taken["uuid"])
    assert stack.coldframe("backup", "list", "--owner", taken["uuid"])["items"] == []
    assert len(stack.coldframe("backup", "list", "--owner", owner)["items"]) == 2
    change_at_rest(guest, b"changed")
    stack.coldframe("snapshot", "revert", taken["uuid"], "--volume", "vda")
    assert seen(guest)["vda"] == frozen


@pytest.mark.case("S10")
def test_cd_rom_is_refused_by_name_and_listed_when_excluded(stack: Stack, vm: Vm) -> None:
    iso = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{}'/>"
    image = stack.host.path("/var/lib/libvirt/images/tools.iso")
    image.write_bytes(b"\0" * 4096)
    devices = iso.format("/var/lib/libvirt/images/tools.iso") + "<target dev='sda' bus='sata'/><readonly/></disk>"
    guest = vm(disks=1, uefi=False, tpm=False, devices=devices)
    code, problem = stack.refused("snapshot", "create", str(guest.uuid))
    assert (code, problem["code"]) == (4, "disk-unsupported")
    assert "sda" in problem["detail"]
    assert stack.coldframe("snapshot", "create", str(guest.uuid), "--exclude", "sda")["excluded"] == ["sda"]


@pytest.mark.case("S13")
def test_overlays_are_private_and_the_guest_starts_on_them(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm())
    stack.coldframe("snapshot", "create", str(guest.uuid))
    for target in targets(guest):
        path = guest.disk_path(target)
        assert stack.host.path(path).stat().st_mode & 0o077 == 0
        done = stack.host.run(["qemu-img", "info", "--output=json", str(path)])
        assert '"backing-filename-format": "qcow2"' in done.stdout
    guest.start()


@pytest.mark.case("S14")
def test_snapshots_of_one_guest_take_turns_and_both_are_made(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm())
    words = ["snapshot", "create", str(guest.uuid)]
    first = stack.coldframe(*words, "a", "--no-wait")
    second = stack.coldframe(*words, "b", "--no-wait")
    ended = [stack.coldframe("operation", "wait", one["uuid"])["state"] for one in (first, second)]
    assert ended == ["succeeded", "succeeded"]
    found = {one["name"]: one for one in stack.coldframe("snapshot", "list", str(guest.uuid))["items"]}
    assert found["b"]["parent"] == found["a"]["uuid"]


@pytest.mark.case("X8")
@pytest.mark.parametrize("name", ["quo'te\"d with space", "-dash ünïcödé", "semi;colon$(id)"])
def test_odd_names_work_from_end_to_end(stack: Stack, vm: Vm, name: str) -> None:
    guest = vm(name=name, disks=1, uefi=False, tpm=False)
    taken = stack.coldframe("snapshot", "create", str(guest.uuid), "--", name)
    assert (taken["vm_name"], taken["name"]) == (name, name)
    stack.coldframe("snapshot", "revert", taken["uuid"], "--no-undo-point")
    stack.coldframe("snapshot", "delete", taken["uuid"])
