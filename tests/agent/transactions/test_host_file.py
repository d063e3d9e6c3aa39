"""Replacing one host file, on real images, NVRAM, TPM state, guards and journal; libvirt is played."""

import pytest

from agent.errors import (
    HostFileDamaged,
    PreconditionFailed,
)
from agent.transactions.manager import Manager
from tests.agent.transactions.rig import VM, Rig, nvram


@pytest.mark.case("B12")
async def test_host_file_is_replaced_whole_and_keeps_owner_and_mode(rig: Rig, manager: Manager) -> None:
    rig.nvram.chmod(0o640)
    new = nvram(b"N")
    written = await manager.write_host_file(VM, "nvram", new, None)
    assert rig.nvram.read_bytes() == new
    assert rig.nvram.stat().st_mode & 0o777 == 0o640
    assert written.size_bytes == len(new)
    assert rig.guards.all() == {}


@pytest.mark.case("B11")
async def test_stale_version_changes_nothing(rig: Rig, manager: Manager) -> None:
    before = rig.nvram.read_bytes()
    with pytest.raises(PreconditionFailed):
        await manager.write_host_file(VM, "nvram", nvram(b"N"), "0" * 64)
    assert rig.nvram.read_bytes() == before
    assert rig.guards.all() == {}


async def test_damaged_host_file_is_not_written(rig: Rig, manager: Manager) -> None:
    before, seen = rig.nvram.read_bytes(), rig.files()
    with pytest.raises(HostFileDamaged):
        await manager.write_host_file(VM, "nvram", nvram(b"N")[:-1], None)
    assert rig.nvram.read_bytes() == before
    assert rig.files() == seen
