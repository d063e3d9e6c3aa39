"""Moving a VM between two real hosts that share their images."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.e2e.conftest import Pair, run_once
from tests.lab.guest import Guest, Shape
from tests.lab.host import LabHost
from tests.lab.paths import PROJECT

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


def as_documented(vm: str, host: str) -> list[str]:
    """Return the words of the operator page's own command, for another VM and host."""
    (line,) = re.findall(r"^coldframe vm place .*$", (PROJECT / "docs" / "operator.md").read_text(), re.MULTILINE)
    return [{"win11": vm, "kvm2": host}.get(word, word) for word in line.split()[1:]]


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
    done = pair.coldframe(*as_documented(uuid, "b"))
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


@pytest.mark.case("D3")
def test_a_deletion_keeps_what_a_running_clone_on_the_other_host_reads(pair: Pair, moving: Moving) -> None:
    source = run_once(moving(disks=1))
    source.disk("vda").write(1 << 20, b"frozen")
    lower = pair.coldframe("snapshot", "create", str(source.uuid), "lower")["uuid"]
    source.disk("vda").write(2 << 20, b"frozen too")
    upper = pair.coldframe("snapshot", "create", str(source.uuid), "upper")["uuid"]
    source.disk("vda").write(1 << 20, b"later.")
    name = f"{source.name}-clone"
    (made,) = pair.coldframe("snapshot", "clone", upper, name)["items"]
    here = Guest(pair.a.host, Shape(name, disks=1), UUID(made["uuid"]))
    clone = on(pair.b.host, here)
    apart = move_apart(here)
    try:
        pair.coldframe("vm", "place", made["uuid"], "b")
        before, own = clone.disk("vda").sha256(), source.disk("vda").sha256()
        clone.start()
        for snapshot in (lower, upper):
            done = pair.coldframe("snapshot", "delete", snapshot)
            assert done["result"]["hidden"] == ["vda"], done
        assert clone.state() == "running"
        clone.destroy()
        clone.wait_off()
        assert (clone.disk("vda").sha256(), source.disk("vda").sha256()) == (before, own)
        clone.start()
        clone.destroy()
        clone.wait_off()
        pair.a.host.virsh("undefine", "--nvram", str(source.uuid))
        pair.soon("the source is gone", lambda: pair.vm(source)["host"] is None)
        code, problem = pair.a.refused("vm", "forget", str(source.uuid), "--disks")
        assert (code, problem["code"]) == (4, "disks-not-removed")
        assert clone.disk("vda").sha256() == before
    finally:
        for host in (pair.a.host, pair.b.host):
            host.virsh("destroy", made["uuid"], check=False)
            host.virsh("undefine", "--nvram", made["uuid"], check=False)
        shutil.rmtree(apart)


def move_apart(guest: Guest) -> Path:
    """Move a guest's top file to a directory that no other image is in, as an administrator does; return that."""
    old = guest.disk_path("vda")
    new = old.parent / guest.name / old.name
    directory = guest.host.path(new.parent)
    directory.mkdir()
    directory.chmod(0o711)
    guest.host.path(old).rename(guest.host.path(new))
    definition = guest.host.path(old.parent) / f"{guest.name}.xml"
    try:
        xml = guest.host.virsh("dumpxml", "--inactive", "--security-info", str(guest.uuid)).stdout
        definition.write_text(xml.replace(str(old), str(new)))
        guest.host.virsh("define", str(old.parent / definition.name))
    finally:
        definition.unlink(missing_ok=True)
    return directory
