"""Clones of a real VM, through the coldframe command."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.e2e.conftest import Stack, change_at_rest, run_once, seen, targets
from tests.lab.guest import Guest, Shape
from tests.lab.paths import IMAGES
from tests.lab.waiting import wait_until

pytestmark = pytest.mark.real
Vm = Callable[..., Guest]
Clone = Callable[..., Guest]
INDEX = 0x1500016
CARD = "<interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface>"


@pytest.fixture
def clone(stack: Stack) -> Iterator[Clone]:
    """A factory for clones by the coldframe command; they are gone after the test, before their sources."""
    made: list[Guest] = []

    def make(source: Guest, snapshot: str, name: str, *options: str) -> Guest:
        (shown,) = stack.coldframe("snapshot", "clone", snapshot, name, *options)["items"]
        assert shown["name"] == name
        shape = Shape(name, disks=source.shape.disks, uefi=source.shape.uefi, tpm=source.shape.tpm)
        guest = Guest(stack.host, shape, UUID(shown["uuid"]))
        stack.host.guests.append(guest)
        made.append(guest)
        return guest

    yield make
    for one in reversed(made):
        one.remove()
        for image in stack.host.path(IMAGES).glob(f"{one.name}.cf-*"):
            image.unlink()


def take(stack: Stack, guest: Guest) -> str:
    return str(stack.coldframe("snapshot", "create", str(guest.uuid))["uuid"])


def mac_of(guest: Guest) -> str:
    mac = guest.xml().find("./devices/interface/mac")
    assert mac is not None
    return str(mac.get("address"))


@pytest.mark.case("C1")
def test_linked_and_full_clone_run_beside_their_source_with_an_identity_of_their_own(
    stack: Stack, vm: Vm, clone: Clone
) -> None:
    guest = run_once(vm(devices=CARD))
    change_at_rest(guest, b"frozen")
    frozen = seen(guest)
    snapshot = take(stack, guest)
    change_at_rest(guest, b"later")
    guest.start()  # a frozen file is only read: its VM may run
    clones = [clone(guest, snapshot, f"{guest.name}-{mode}", "--mode", mode) for mode in ("linked", "full")]
    for one in clones:
        assert {target: one.disk(target).sha256() for target in targets(one)} == {t: frozen[t] for t in targets(one)}
        assert one.host.path(one.nvram).exists()
        one.start()
    everyone = [guest, *clones]
    assert [one.state() for one in everyone] == ["running"] * 3
    assert len({mac_of(one) for one in everyone}) == 3
    assert len({one.nvram for one in everyone}) == 3
    assert {one.xml().findtext("uuid") for one in everyone} == {str(one.uuid) for one in everyone}
    for one in everyone:
        one.destroy()
    assert {target: guest.disk(target).sha256() for target in targets(guest)} != {t: frozen[t] for t in targets(guest)}


@pytest.mark.case("D3")
@pytest.mark.case("D9")
def test_a_deleted_snapshot_keeps_its_files_for_a_linked_clone_and_they_go_after_it(
    stack: Stack, vm: Vm, clone: Clone
) -> None:
    guest = run_once(vm())
    change_at_rest(guest, b"frozen")
    frozen = {target: guest.disk(target).sha256() for target in targets(guest)}
    snapshot = take(stack, guest)
    bases = [one["path"] for one in stack.coldframe("snapshot", "show", snapshot)["volumes"]]
    one = clone(guest, snapshot, f"{guest.name}-linked")
    change_at_rest(guest, b"later")
    mine = {target: guest.disk(target).sha256() for target in targets(guest)}
    deleted = stack.coldframe("snapshot", "delete", snapshot)
    assert deleted["result"]["hidden"] == list(targets(guest))
    assert {target: one.disk(target).sha256() for target in targets(one)} == frozen
    one.start()
    assert stack.coldframe("snapshot", "delete", take(stack, guest))["result"]["remarks"] == []
    assert all(stack.host.path(Path(path)).exists() for path in bases)
    one.destroy()
    code, problem = stack.refused("vm", "forget", str(one.uuid), "--disks")
    assert (code, problem["code"]) == (4, "vm-defined")
    stack.host.virsh("undefine", "--nvram", str(one.uuid))
    wait_until("no host", lambda: stack.coldframe("vm", "show", str(one.uuid))["host"] is None, 20, every_s=0.2)
    stack.coldframe("vm", "forget", str(one.uuid), "--disks")
    assert not list(stack.host.path(IMAGES).glob(f"{one.name}.cf-*"))
    assert stack.coldframe("snapshot", "delete", take(stack, guest))["result"]["remarks"] == []
    assert not any(stack.host.path(Path(path)).exists() for path in bases)
    assert {target: guest.disk(target).sha256() for target in targets(guest)} == mine
    guest.start()


@pytest.mark.slow
@pytest.mark.case("C1")
def test_guest_of_a_clone_finds_its_files_and_variables(stack: Stack, vm: Vm, clone: Clone) -> None:
    guest = vm(disks=1)
    guest.boot()
    guest.set_variable("Colour", "green")
    guest.write_file("note.txt", "before")
    guest.shutdown()
    one = clone(guest, take(stack, guest), f"{guest.name}-copy", "--tpm", "copy")
    one.boot()
    assert one.get_variable("Colour") == "green"
    assert one.read_file("note.txt") == "before"
    one.write_file("note.txt", "mine")
    one.shutdown()
    guest.boot()
    assert guest.read_file("note.txt") == "before"
    guest.shutdown()


@pytest.mark.case("C2")
def test_reset_gives_another_endorsement_key_and_copy_the_same_index(stack: Stack, vm: Vm, clone: Clone) -> None:
    guest = run_once(vm(disks=1))
    guest.tpm.write_index(INDEX, b"mine")
    key = guest.tpm.ek_public()
    snapshot = take(stack, guest)
    reset = run_once(clone(guest, snapshot, f"{guest.name}-reset", "--tpm", "reset"))
    copied = run_once(clone(guest, snapshot, f"{guest.name}-copied", "--tpm", "copy"))
    assert reset.tpm.ek_public() != key
    assert reset.tpm.read_index(INDEX) is None
    assert copied.tpm.ek_public() == key
    assert copied.tpm.read_index(INDEX) == b"mine"
    shown = [stack.coldframe("vm", "show", str(one.uuid))["clone"] for one in (reset, copied)]
    assert [one["tpm"] for one in shown] == ["reset", "copy"]
    assert {one["snapshot"] for one in shown} == {snapshot}


@pytest.mark.case("C3")
def test_clone_that_never_started_is_snapshotted_whole_and_cloned(stack: Stack, vm: Vm, clone: Clone) -> None:
    guest = run_once(vm(disks=1))
    first = clone(guest, take(stack, guest), f"{guest.name}-first")
    stack.host.path(first.nvram).unlink()  # lost before the first start: the seed has it
    taken = stack.coldframe("snapshot", "create", str(first.uuid))
    assert taken["host_files"] == {"state": "complete", "expected": ["nvram"], "missing": [], "reason": None}
    second = clone(first, taken["uuid"], f"{guest.name}-second")
    assert stack.host.path(second.nvram).read_bytes() == stack.host.path(guest.nvram).read_bytes()
    run_once(second)


@pytest.mark.case("C4")
@pytest.mark.case("C5")
def test_one_of_several_fails_by_name_and_the_same_names_again_make_no_second_clone(
    stack: Stack, vm: Vm, clone: Clone
) -> None:
    guest = run_once(vm(disks=1))
    other = vm(disks=1, uefi=False, tpm=False)
    snapshot, name = take(stack, guest), f"{guest.name}-one"
    before = {path.name for path in stack.host.path(IMAGES).iterdir()}
    code, problem = stack.refused("snapshot", "clone", snapshot, other.name, name)
    assert (code, problem["code"]) == (4, "clones-failed")
    assert [row["name"] for row in problem["facts"]["failed"]] == [other.name]
    (row,) = problem["facts"]["clones"]
    made = clone(guest, snapshot, name)
    assert str(made.uuid) == row["vm"]
    added = {path.name for path in stack.host.path(IMAGES).iterdir()} - before
    assert len(added) == 1
    assert added.pop().startswith(f"{name}.cf-")
