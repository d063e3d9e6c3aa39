"""Moving a VM between two real hosts that share their images."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Pair, run_once
from tests.lab.guest import Guest
from tests.lab.host import LabHost

pytestmark = pytest.mark.real
Moving = Callable[..., Guest]
INDEX = 0x1500016


def on(host: LabHost, guest: Guest) -> Guest:
    """Return the same guest as it is on another host."""
    return Guest(host, guest.shape, guest.uuid)


def defined(host: LabHost, guest: Guest) -> bool:
    return host.virsh("dominfo", str(guest.uuid), check=False).returncode == 0


def host_files(guest: Guest) -> list[str | None]:
    """Hash NVRAM and TPM state where they are on the guest's host."""
    paths = [guest.host.path(guest.nvram), guest.host.path(guest.tpm_dir) / "tpm2-00.permall"]
    return [hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None for path in paths]


def clean(pair: Pair, guest: Guest) -> bool:
    held = pair.vm(guest)["host_files"]
    return len(held) == 2 and all(one["sha256"] and not one["dirty_since"] for one in held)


@pytest.mark.case("P1")
def test_a_placed_guest_finds_its_nvram_and_tpm_at_its_first_start_and_its_snapshots_with_it(
    pair: Pair, moving: Moving
) -> None:
    guest = moving(disks=1)
    guest.boot()
    guest.set_variable("Colour", "green")
    guest.shutdown()
    guest.tpm.write_index(INDEX, b"sealed")
    uuid, there = str(guest.uuid), on(pair.b.host, guest)
    taken = pair.coldframe("snapshot", "create", uuid, "on a")["uuid"]
    before = host_files(guest)
    done = pair.coldframe("vm", "place", uuid, "b")
    assert (done["result"]["from"], done["result"]["left_on"], done["result"]["remarks"]) == ("a", [], [])
    assert host_files(there) == before
    assert (defined(pair.a.host, guest), defined(pair.b.host, guest)) == (False, True)
    assert host_files(guest) == [None, None]
    assert pair.vm(guest)["host"] == "b"
    assert pair.told("vm.placed", vm=uuid)
    kept = pair.a.agent.state_dir / "departed" / uuid
    assert sorted(path.name for path in kept.iterdir()) == ["domain.xml", "nvram", "tpm"]
    there.boot()
    assert there.get_variable("Colour") == "green"
    there.set_variable("Colour", "blue")
    there.shutdown()
    assert there.tpm.read_index(INDEX) == b"sealed"
    pair.coldframe("snapshot", "revert", taken, "--no-undo-point")
    assert host_files(there) == before
    pair.coldframe("vm", "place", uuid, "a")
    assert (defined(pair.a.host, guest), defined(pair.b.host, guest)) == (True, False)
    assert host_files(guest) == before


@pytest.mark.case("P2")
@pytest.mark.case("P3")
@pytest.mark.case("P8")
def test_a_lost_hosts_guest_is_placed_from_a_clean_copy_or_by_force_and_its_return_is_settled(
    pair: Pair, moving: Moving
) -> None:
    still, dirty = run_once(moving(disks=1)), run_once(moving(disks=1))
    for one in (still, dirty):
        pair.soon("clean copies", lambda one=one: clean(pair, one))  # type: ignore[misc]  # bound now
    copied = host_files(dirty)
    dirty.start()
    pair.soon("the start is seen", lambda: pair.vm(dirty)["host_files"][0]["dirty_since"] is not None)
    pair.a.agent.stop()
    dirty.destroy()
    dirty.tpm.write_index(INDEX, b"never copied")
    try:
        pair.soon("the host is lost", lambda: not pair.host("a")["reachable"])

        placed = pair.coldframe("vm", "place", str(still.uuid), "b")
        assert placed["result"]["left_on"] == ["a"]
        assert host_files(on(pair.b.host, still)) == host_files(still)
        code, problem = pair.a.refused("vm", "place", str(dirty.uuid), "b")
        assert (code, problem["code"]) == (4, "host-files-stale")
        assert "ago" in problem["detail"]
        assert not defined(pair.b.host, dirty)
        pair.coldframe("vm", "place", str(dirty.uuid), "b", "--force")
        assert host_files(on(pair.b.host, dirty)) == copied
        run_once(on(pair.b.host, dirty))
        lost = host_files(dirty)
    finally:
        pair.a.agent.start()
    pair.soon("the conflict is shown", lambda: pair.vm(dirty)["conflict"] == "a, b")
    assert pair.a.refused("snapshot", "create", str(dirty.uuid))[1]["code"] == "vm-conflict"
    settled = pair.coldframe("vm", "place", str(dirty.uuid), "b")
    assert (defined(pair.a.host, dirty), pair.vm(dirty)["conflict"]) == (False, None)
    owner = settled["result"]["kept_as"]
    kept: list[dict[str, Any]] = pair.coldframe("backup", "list", "--owner", owner)["items"]
    assert lost[0] in [one["sha256"] for one in kept]
    assert pair.coldframe("snapshot", "create", str(dirty.uuid))["state"] == "ready"
    pair.coldframe("vm", "place", str(still.uuid), "b")


def test_what_the_other_host_lacks_is_refused_before_anything_is_touched(pair: Pair, moving: Moving) -> None:
    guest = run_once(moving(disks=1))
    uuid, before = str(guest.uuid), host_files(guest)
    other = pair.b.host.path("/var/lib/libvirt/qemu/nvram") / guest.nvram.name
    other.write_bytes(b"an earlier domain's")
    assert pair.a.refused("vm", "place", uuid, "b")[1]["code"] == "domain-name-refused"
    other.unlink()
    guest.start()
    assert pair.a.refused("vm", "place", uuid, "b")[1]["code"] == "domain-running"
    guest.destroy()
    assert pair.a.refused("vm", "place", uuid, "nowhere")[1]["code"] == "host-not-found"
    assert defined(pair.a.host, guest)
    assert not defined(pair.b.host, guest)
    assert [name is None for name in host_files(guest)] == [name is None for name in before]
    guest.start()
