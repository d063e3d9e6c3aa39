"""NVRAM and TPM through a VM's life on one host: renamed, undefined, lost, put back."""

from collections.abc import Callable

import pytest

from tests.e2e.conftest import Stack, run_once
from tests.lab.guest import Guest
from tests.lab.paths import NVRAM
from tests.lab.waiting import wait_until

pytestmark = pytest.mark.real
Vm = Callable[..., Guest]


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
