"""What a host has, read from real files; libvirt alone is played (tests.agent.transactions.rig)."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agent.errors import (
    DomainNotFound,
    DomainUnreadable,
    HostFileMissing,
    HostFileNotFound,
    HostFileUnsupported,
    HypervisorTimeout,
)
from agent.host import neighbours
from agent.host.inventory import Inventory
from agent.limits import Limits
from agent.transactions.expected import Expected, ExpectedFiles
from agent.transactions.guard import Guards
from agent.wire.host_file import FORMATS
from tests.agent.transactions.rig import VM, Rig

OTHER = UUID("0f7c2c54-6a63-4a0e-9d0a-6ad2a0f3c0de")
OVMF = "<loader type='pflash' readonly='yes'>{code}</loader><nvram template='{vars}'>{nvram}</nvram>"


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path).build()


@pytest.fixture
def expected(rig: Rig) -> Expected:
    return Expected(rig.state_dir)


@pytest.fixture
def inventory(rig: Rig, expected: Expected) -> Inventory:
    limits = Limits(
        state_dir=rig.state_dir,
        nvram_dir=rig.nvram.parent,
        swtpm_dir=rig.tpm.parent,
        allowed_image_dirs=[rig.images],
    )
    return Inventory(rig.hypervisor, Guards(rig.state_dir), expected, limits)


def add_domain(rig: Rig, uuid: UUID, name: str, xml: str | None = None) -> None:
    """Define a second domain beside the rig's own; without ``xml`` it is a copy with another name."""
    original = (rig.hypervisor.directory / f"{VM}.xml").read_text()
    copy = original.replace(str(VM), str(uuid)).replace("<name>win11<", f"<name>{name}<")
    (rig.hypervisor.directory / f"{uuid}.xml").write_text(xml or copy)
    (rig.hypervisor.directory / f"{uuid}.flags").write_text("")


def drop_explicit_nvram(rig: Rig) -> None:
    rig.edit(lambda xml: xml.replace(f"<nvram>{rig.nvram}</nvram>", ""))


async def test_a_domain_is_shown_with_its_disks_and_firmware(inventory: Inventory, rig: Rig) -> None:
    vm = await inventory.vm(VM)

    assert (vm.name, vm.state, vm.firmware, vm.tpm, vm.nvram) == ("win11", "shut-off", "uefi", "2.0", str(rig.nvram))
    assert [(disk.target, disk.chain_depth, disk.problem) for disk in vm.disks] == [("vda", 1, None), ("vdb", 1, None)]
    assert vm.domain_xml.startswith("<domain")
    assert await inventory.vms() == [vm]


async def test_one_unreadable_disk_does_not_hide_the_others(inventory: Inventory, rig: Rig) -> None:
    (rig.images / "vdb.qcow2").write_bytes(b"no image")

    first, second = (await inventory.vm(VM)).disks

    assert first.problem is None
    assert (second.chain, second.problem is not None) == ([], True)


async def test_a_disk_that_is_not_covered_is_listed_and_not_opened(inventory: Inventory, rig: Rig) -> None:
    rig.edit(lambda xml: xml.replace("type='qcow2'", "type='raw'", 1))

    first = (await inventory.vm(VM)).disks[0]

    assert (first.excluded_because, first.problem, first.chain) == ("raw", None, [])


async def test_one_unreadable_domain_is_listed_with_its_problem(inventory: Inventory, rig: Rig) -> None:
    add_domain(rig, OTHER, "odd", "<domain><name>odd</name><devices/></domain>")

    by_name = {vm.name: vm for vm in await inventory.vms()}

    assert "UUID" in (by_name["odd"].problem or "")
    assert by_name["win11"].problem is None
    with pytest.raises(DomainUnreadable):
        await inventory.vm(OTHER)


async def test_a_start_that_passed_the_hook_shows_as_starting(
    rig: Rig, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guards, "is_starting", lambda _self, vm: vm == VM)
    assert (await inventory.vm(VM)).state == "starting"

    rig.flags("running")
    assert (await inventory.vm(VM)).state == "running"


async def test_the_guard_of_a_domain_is_shown(rig: Rig, inventory: Inventory) -> None:
    transaction = uuid4()
    Guards(rig.state_dir).raise_guard(VM, "win11", transaction, "snapshot")

    guard = (await inventory.vm(VM)).guard

    assert guard is not None
    assert guard.transaction == transaction


@pytest.mark.case("F6")
async def test_while_libvirt_lists_nothing_those_that_answer_are_shown(rig: Rig, inventory: Inventory) -> None:
    add_domain(rig, OTHER, "other")
    await inventory.vms()
    rig.flags("running")
    played, hung = rig.hypervisor, HypervisorTimeout(uri="played", call="domains", timeout_s=1)

    async def no_list() -> list[object]:
        raise hung

    async def only_one(uuid: UUID) -> object:
        return await type(played).domain(played, uuid) if uuid == VM else await asyncio.Event().wait()

    played.domains, played.domain = no_list, only_one  # type: ignore[method-assign, assignment]

    by_name = {vm.name: vm for vm in await inventory.vms()}

    assert (by_name["win11"].state, by_name["win11"].problem) == ("running", None)
    assert by_name["other"].state == "unknown"
    assert by_name["other"].problem


@pytest.mark.case("F6")
async def test_when_nothing_answers_the_error_is_the_answer(rig: Rig, inventory: Inventory) -> None:
    await inventory.vms()
    rig.hypervisor.failing = {"domain", "inactive_xml"}
    rig.hypervisor.error = lambda: HypervisorTimeout(uri="played", call="domains", timeout_s=1)

    with pytest.raises(HypervisorTimeout):
        await inventory.vms()


@pytest.mark.case("B2")
async def test_both_host_files_are_listed_and_read_with_the_same_hash(inventory: Inventory, rig: Rig) -> None:
    listed = await inventory.host_files(VM)

    assert (listed.expected, listed.missing) == (["nvram", "tpm"], [])
    for item in listed.items:
        found, data = await inventory.read_host_file(VM, item.type)
        assert found == item
        assert (item.size_bytes, item.format) == (len(data), FORMATS[item.type])
    assert (await inventory.read_host_file(VM, "nvram"))[1] == rig.nvram.read_bytes()


@pytest.fixture
def dated_beyond(rig: Rig) -> Iterator[None]:
    """A TPM state that its owner has dated in the year 36812."""
    state = rig.tpm / "tpm2" / "tpm2-00.permall"
    data = state.read_bytes()
    subprocess.run(["mount", "-t", "tmpfs", "none", state.parent], check=True)  # others cut a date to what they hold
    state.write_bytes(data)
    subprocess.run(["touch", "-d", f"@{2**40}", state], check=True)
    yield
    subprocess.run(["umount", state.parent], check=True)


@pytest.mark.usefixtures("dated_beyond")
async def test_a_tpm_state_that_is_dated_beyond_all_calendars_is_read_as_any_other(inventory: Inventory) -> None:
    listed = await inventory.host_files(VM)
    assert [item.type for item in listed.items if item.mtime.year == 9999] == ["tpm"]


@pytest.mark.case("B7")
@pytest.mark.case("B10")
async def test_what_should_be_there_and_is_not_is_named_and_does_not_keep_the_other_back(
    inventory: Inventory, rig: Rig
) -> None:
    rig.nvram.write_bytes(rig.nvram.read_bytes()[:1000])
    listed = await inventory.host_files(VM)
    assert [item.type for item in listed.items] == ["tpm"]
    assert [(one.type, one.code) for one in listed.missing] == [("nvram", "host-file-damaged")]

    rig.nvram.unlink()
    (missing,) = (await inventory.host_files(VM)).missing
    assert (missing.code, missing.path) == ("host-file-missing", str(rig.nvram))
    with pytest.raises(HostFileMissing):
        await inventory.read_host_file(VM, "nvram")


@pytest.mark.case("B7")
async def test_firmware_state_out_of_reach_is_expected_and_missing_with_the_reason(
    inventory: Inventory, rig: Rig
) -> None:
    rig.edit(lambda xml: xml.replace("<backend type='emulator' version='2.0'/>", "<backend type='passthrough'/>"))

    listed = await inventory.host_files(VM)

    assert listed.expected == ["nvram", "tpm"]
    assert [(one.code, "passthrough" in one.reason) for one in listed.missing] == [("host-file-unsupported", True)]
    with pytest.raises(HostFileUnsupported):
        await inventory.read_host_file(VM, "tpm")


@pytest.mark.case("B1")
async def test_a_domain_without_host_files_expects_none(inventory: Inventory, rig: Rig) -> None:
    rig.edit(lambda xml: xml.replace("firmware='efi'", "").replace("<tpm ", "<gone ").replace("</tpm>", "</gone>"))

    listed = await inventory.host_files(VM)

    assert (listed.items, listed.expected, listed.missing) == ([], [], [])
    with pytest.raises(HostFileNotFound):
        await inventory.read_host_file(VM, "tpm")


async def test_domains_that_share_an_nvram_file_are_named_through_links_too(inventory: Inventory, rig: Rig) -> None:
    link = rig.nvram.with_name("link.fd")
    link.symlink_to(rig.nvram)
    add_domain(rig, OTHER, "twin")
    path = rig.hypervisor.directory / f"{OTHER}.xml"
    path.write_text(path.read_text().replace(str(rig.nvram), str(link)))

    assert sorted(neighbours.with_nvram(await inventory.neighbours(), rig.nvram)) == ["twin", "win11"]


async def test_what_was_seen_sound_is_expected_from_then_on(inventory: Inventory, rig: Rig, expected: Expected) -> None:
    await inventory.note_host_files(VM)
    assert expected.read(VM) == ExpectedFiles("win11", rig.nvram, None, rig.tpm)

    rig.nvram.unlink()
    (rig.tpm / "tpm2" / "tpm2-00.permall").unlink()
    await inventory.note_host_files(VM)

    assert expected.read(VM) == ExpectedFiles("win11", rig.nvram, None, rig.tpm)


async def test_what_was_never_sound_is_not_expected(inventory: Inventory, rig: Rig, expected: Expected) -> None:
    rig.nvram.write_bytes(b"")
    (rig.tpm / "tpm2" / "tpm2-00.permall").unlink()

    await inventory.note_host_files(VM)

    assert expected.read(VM) == ExpectedFiles("win11")


async def test_the_list_follows_the_definition(inventory: Inventory, rig: Rig, expected: Expected) -> None:
    await inventory.note_host_files(VM)
    moved = rig.nvram.with_name("moved.fd")
    rig.edit(
        lambda xml: xml.replace(str(rig.nvram), str(moved)).replace("<tpm ", "<gone ").replace("</tpm>", "</gone>")
    )

    await inventory.note_host_files(VM)

    assert expected.read(VM) == ExpectedFiles("win11", moved)


async def test_what_was_taken_away_on_purpose_is_forgotten(inventory: Inventory, rig: Rig, expected: Expected) -> None:
    await inventory.note_host_files(VM)

    await inventory.note_host_files(VM, forget=["tpm"])

    assert expected.read(VM) == ExpectedFiles("win11", rig.nvram)


@pytest.mark.case("P5")
async def test_what_is_kept_outlives_the_definition(inventory: Inventory, rig: Rig, expected: Expected) -> None:
    await inventory.note_host_files(VM)
    (rig.hypervisor.directory / f"{VM}.xml").unlink()

    with pytest.raises(DomainNotFound):
        await inventory.note_host_files(VM)

    assert expected.read(VM) == ExpectedFiles("win11", rig.nvram, None, rig.tpm)


@pytest.mark.case("P6")
@pytest.mark.parametrize("died", [False, True])
async def test_the_nvram_of_a_renamed_domain_follows_it(
    inventory: Inventory, rig: Rig, expected: Expected, died: bool
) -> None:
    drop_explicit_nvram(rig)
    await inventory.note_host_files(VM)
    before, new = rig.nvram.read_bytes(), rig.nvram.with_name("neu_VARS.fd")
    rig.edit(lambda xml: xml.replace("<name>win11<", "<name>neu<"))
    if died:
        new.hardlink_to(rig.nvram)

    await inventory.note_host_files(VM)

    assert (new.read_bytes(), rig.nvram.exists()) == (before, False)
    assert expected.read(VM) == ExpectedFiles("neu", None, rig.nvram.parent, rig.tpm)


@pytest.mark.case("P6")
@pytest.mark.parametrize("obstacle", ["guard", "another domain", "another file", "running"])
async def test_a_renamed_domain_is_kept_under_its_old_name_while_its_nvram_cannot_follow(
    inventory: Inventory, rig: Rig, expected: Expected, obstacle: str
) -> None:
    drop_explicit_nvram(rig)
    await inventory.note_host_files(VM)
    before, new = rig.nvram.read_bytes(), rig.nvram.with_name("neu_VARS.fd")
    if obstacle == "guard":
        Guards(rig.state_dir).raise_guard(VM, "neu", OTHER, "snapshot")
    if obstacle == "another domain":
        add_domain(rig, OTHER, "win11")
    if obstacle == "another file":
        new.write_bytes(b"another's")
    if obstacle == "running":
        rig.flags("running")
    rig.edit(lambda xml: xml.replace("<name>win11<", "<name>neu<"))

    await inventory.note_host_files(VM)

    assert rig.nvram.read_bytes() == before
    assert new.exists() == (obstacle == "another file")
    kept = expected.read(VM)
    assert kept is not None
    assert (kept.name, kept.nvram_default_dir) == ("win11", rig.nvram.parent)


async def test_notes_of_one_domain_take_turns(inventory: Inventory, rig: Rig, expected: Expected) -> None:
    await asyncio.gather(*(inventory.note_host_files(VM) for _ in range(5)), inventory.note_host_files(VM, ["tpm"]))

    assert expected.read(VM) == ExpectedFiles("win11", rig.nvram)


async def test_firmware_named_only_while_running_is_remembered(inventory: Inventory, rig: Rig, tmp_path: Path) -> None:
    code, variables = tmp_path / "CODE.fd", tmp_path / "VARS.fd"
    code.write_bytes(b"code")
    variables.symlink_to(code)
    assert await inventory.firmware_files(VM) == []

    live = OVMF.format(code=code, vars=variables, nvram=rig.nvram)
    rig.flags("running")
    rig.edit(lambda xml: xml.replace(f"<nvram>{rig.nvram}</nvram>", live))
    await inventory.note_host_files(VM)
    rig.flags("")
    rig.edit(lambda xml: xml.replace(live, ""))

    loader, template = await inventory.firmware_files(VM)

    assert (loader.role, loader.path, loader.size_bytes) == ("loader", str(code), 4)
    assert (template.role, template.path, template.sha256) == ("template", str(variables), loader.sha256)


async def test_firmware_that_changed_has_another_hash_and_one_that_is_gone_is_left_out(
    inventory: Inventory, rig: Rig, tmp_path: Path
) -> None:
    code = tmp_path / "CODE.fd"
    code.write_bytes(b"code")
    rig.edit(lambda xml: xml.replace("<nvram>", f"<loader type='pflash' readonly='yes'>{code}</loader><nvram>"))
    (before,) = await inventory.firmware_files(VM)

    code.write_bytes(b"newer")
    (after,) = await inventory.firmware_files(VM)
    code.unlink()

    assert before.sha256 != after.sha256
    assert await inventory.firmware_files(VM) == []


async def test_reading_host_files_changes_nothing(inventory: Inventory, rig: Rig) -> None:
    before = rig.contents()

    await inventory.host_files(VM)
    await inventory.vms()

    assert rig.contents() == before
