"""Two hosts under one controller: links that are cut, addresses that change, VMs that two hosts define."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Pair, run_once
from tests.lab.guest import Guest

pytestmark = pytest.mark.real
Moving = Callable[..., Guest]


def files_of(pair: Pair, guest: Guest) -> dict[str, dict[str, Any]]:
    """Return the copies that are shown of a guest's host files."""
    return {one["type"]: one for one in pair.vm(guest)["host_files"]}


def clean(pair: Pair, guest: Guest) -> bool:
    """Say whether both host files are held as they are now."""
    held = files_of(pair, guest).values()
    return len(held) == 2 and all(one["sha256"] and not one["dirty_since"] for one in held)


def addresses(pair: Pair) -> list[str]:
    """Return the addresses that are shown of host a."""
    return [one["address"] for one in pair.host("a")["facts"]["addresses"]]


@pytest.mark.case("P7")
def test_a_cut_link_and_a_changed_address_are_shown_and_work_goes_on_without_a_restart(
    pair: Pair, moving: Moving
) -> None:
    guest, cable = run_once(moving(disks=1)), pair.fleet.a.cable
    pair.soon("the first copy", lambda: clean(pair, guest))
    cable.cut()
    try:
        pair.soon("the host is shown as lost", lambda: not pair.host("a")["reachable"])
        assert pair.host("a")["error"]
        assert pair.host("b")["reachable"]
        code, problem = pair.a.refused("vm", "sync", str(guest.uuid))
        assert (code, problem["code"]) == (5, "host-unreachable")
        run_once(guest)  # unseen
    finally:
        cable.restore()
    pair.soon("the host is used again", lambda: pair.host("a")["reachable"])
    pair.soon("the lost link is told", lambda: pair.told("host.link", host="a", up=False))
    pair.soon("what it wrote unseen is copied", lambda: clean(pair, guest))

    cable.b.set_address("10.77.1.9/24")
    other = f"https://{pair.fleet.b.cable.b.address}:7701"
    code, problem = pair.a.refused("host", "set", "a", "--agent-url", other)
    assert (code, problem["code"]) == (5, "host-unreachable")  # the certificate is pinned
    assert pair.coldframe("host", "set", "a", "--agent-url", pair.fleet.a.url)["url"] == "https://10.77.1.9:7701"
    assert pair.coldframe("snapshot", "create", str(guest.uuid))["state"] == "ready"
    pair.soon("the address is told", lambda: pair.told("host.address", host="a"))
    pair.soon("the address is shown", lambda: "10.77.1.9" in addresses(pair))
    assert pair.told("host.changed", host="a", url="https://10.77.1.9:7701")


@pytest.mark.case("P8")
def test_a_vm_on_two_hosts_is_a_conflict_and_is_not_changed_until_one_lets_go(pair: Pair, moving: Moving) -> None:
    guest = run_once(moving(disks=1))
    uuid = str(guest.uuid)
    taken = pair.coldframe("snapshot", "create", uuid)["uuid"]
    top = guest.disk_path("vda")
    xml = pair.a.host.virsh("dumpxml", "--inactive", uuid).stdout
    pair.b.host.virsh("define", "/dev/stdin", input=xml)
    pair.soon("the conflict is shown", lambda: pair.vm(guest)["conflict"] == "a, b")
    assert pair.told("vm.changed", vm=uuid, conflict="a, b")
    for words in (
        ("snapshot", "create", uuid),
        ("snapshot", "revert", taken),
    ):
        code, problem = pair.a.refused(*words)
        assert (code, problem["code"]) == (4, "vm-conflict")
        assert "a, b" in problem["detail"]
    assert guest.disk_path("vda") == top
    pair.b.host.virsh("undefine", "--keep-nvram", uuid)
    pair.soon("the conflict is over", lambda: not pair.vm(guest)["conflict"])
    pair.coldframe("snapshot", "revert", taken)
