"""NVRAM and TPM through a VM's life on one host: renamed, undefined, lost, put back."""

from collections.abc import Callable

import pytest

from tests.e2e.conftest import Stack, run_once
from tests.lab.guest import Guest
from tests.lab.paths import NVRAM
from tests.lab.waiting import wait_until

pytestmark = pytest.mark.real
Vm = Callable[..., Guest]
INDEX = 0x1500016


@pytest.mark.case("P6")
def test_a_renamed_guest_keeps_its_nvram_and_starts_with_it(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm(disks=1))
    real = stack.host.path
    wait_until("the stop is worked off", lambda: stack.events(guest, "vm.stopped"), 20)
    old, new = real(guest.nvram), real(NVRAM / f"{guest.name}-renamed_VARS.fd")
    before = old.read_bytes()
    stack.host.virsh("domrename", guest.name, f"{guest.name}-renamed")
    wait_until("the NVRAM at its new name", lambda: new.exists() and not old.exists(), 20)
    assert new.read_bytes() == before
    inode = new.stat().st_ino
    guest.start()
    guest.destroy()
    assert (new.stat().st_ino, old.exists()) == (inode, False)


@pytest.mark.case("P5")
@pytest.mark.case("P4")
def test_what_undefine_deleted_is_refused_at_the_start_and_restored_whole(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm(disks=1))
    uuid, real = str(guest.uuid), stack.host.path
    guest.tpm.write_index(INDEX, b"sealed")
    stack.coldframe("vm", "sync", uuid)
    key, nvram = guest.tpm.ek_public(), real(guest.nvram).read_bytes()
    xml = stack.host.virsh("dumpxml", "--inactive", uuid).stdout
    stack.host.virsh("undefine", "--nvram", uuid)
    assert not real(guest.nvram).exists()
    assert not real(guest.tpm_dir).exists()
    stack.host.virsh("define", "/dev/stdin", input=xml)
    stack.known(guest)
    refused = stack.host.virsh("start", uuid, check=False)
    assert refused.returncode != 0
    assert "restore" in refused.stderr
    done = stack.coldframe("vm", "restore-host-files", uuid)
    assert (done["result"]["restored"], done["result"]["remarks"]) == (["nvram", "tpm"], [])
    assert real(guest.nvram).read_bytes() == nvram
    guest.start()
    guest.destroy()
    guest.wait_off()
    assert guest.tpm.ek_public() == key
    assert guest.tpm.read_index(INDEX) == b"sealed"


def test_guests_that_name_one_nvram_file_are_refused_by_name(stack: Stack, vm: Vm) -> None:
    guest = run_once(vm(disks=1, firmware="explicit", tpm=False))
    other = vm(disks=1, tpm=False)
    xml = stack.host.virsh("dumpxml", "--inactive", str(other.uuid)).stdout
    shared = f"<nvram>{guest.nvram}</nvram></os>"
    stack.host.virsh("define", "/dev/stdin", input=xml.replace("</os>", shared))
    stack.coldframe("vm", "sync", str(guest.uuid))
    for words in (
        ["snapshot", "create", str(guest.uuid)],
        ["vm", "restore-host-files", str(guest.uuid), "--type", "nvram"],
    ):
        code, problem = stack.refused(*words)
        assert (code, problem["code"]) == (4, "host-file-shared")
        assert other.name in problem["detail"]
