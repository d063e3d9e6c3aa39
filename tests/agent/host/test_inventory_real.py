"""What the inventory makes of a real libvirt, swtpm and OVMF. It looks from outside the lab, so not at disks."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from agent.errors import DomainNotFound
from agent.host.hypervisor import Hypervisor
from agent.host.inventory import Inventory
from agent.limits import Limits
from agent.transactions.expected import Expected
from agent.transactions.guard import Guards
from tests.lab.fixtures import GuestFactory
from tests.lab.host import LabHost
from tests.lab.paths import IMAGES, NVRAM, SWTPM

pytestmark = pytest.mark.real


@pytest.fixture
def expected(tmp_path: Path) -> Expected:
    return Expected(tmp_path)


@pytest.fixture
async def inventory(lab_host: LabHost, tmp_path: Path, expected: Expected) -> AsyncIterator[Inventory]:
    limits = Limits(
        state_dir=tmp_path,
        nvram_dir=lab_host.path(NVRAM),
        swtpm_dir=lab_host.path(SWTPM),
        allowed_image_dirs=[lab_host.path(IMAGES)],
    )
    async with Hypervisor(lab_host.uri) as hypervisor:
        yield Inventory(hypervisor, Guards(tmp_path), expected, limits)


@pytest.mark.case("P5")
async def test_what_a_start_made_is_expected_also_after_libvirt_deleted_it(
    lab_host: LabHost, guest: GuestFactory, inventory: Inventory, expected: Expected
) -> None:
    vm = guest(disks=1)
    uuid = UUID(str(vm.uuid))
    assert [one.code for one in (await inventory.host_files(uuid)).missing] == ["host-file-missing"] * 2
    lab_host.virsh("start", vm.name)
    lab_host.virsh("destroy", vm.name)

    listed = await inventory.host_files(uuid)
    await inventory.note_host_files(uuid)
    kept = expected.read(uuid)
    definition = lab_host.virsh("dumpxml", "--inactive", vm.name).stdout
    lab_host.virsh("undefine", vm.name, "--nvram")

    assert ([item.type for item in listed.items], listed.missing) == (["nvram", "tpm"], [])
    assert kept is not None
    assert (kept.nvram_default_dir, kept.tpm_dir) == (lab_host.path(NVRAM), lab_host.path(SWTPM) / str(uuid))
    with pytest.raises(DomainNotFound):
        await inventory.note_host_files(uuid)
    lab_host.virsh("define", "/dev/stdin", input=definition)
    await inventory.note_host_files(uuid)
    assert expected.read(uuid) == kept
    assert [one.type for one in (await inventory.host_files(uuid)).missing] == ["nvram", "tpm"]


async def test_firmware_that_libvirt_names_only_while_it_runs_is_known_when_it_is_off(
    lab_host: LabHost, guest: GuestFactory, inventory: Inventory
) -> None:
    vm = guest(disks=1)
    uuid = UUID(str(vm.uuid))
    lab_host.virsh("start", vm.name)
    await inventory.note_host_files(uuid)
    lab_host.virsh("destroy", vm.name)

    loader, template = await inventory.firmware_files(uuid)

    assert (loader.role, template.role) == ("loader", "template")
    assert loader.size_bytes == Path(loader.path).stat().st_size
    assert len(template.sha256) == 64
