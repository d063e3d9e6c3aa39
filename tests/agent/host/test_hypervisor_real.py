"""libvirt behind a deadline, with a real libvirtd that is restarted, stopped in its tracks and held up by a hook."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from subprocess import PIPE
from uuid import UUID, uuid4

import pytest

from agent.errors import DomainNotFound, HypervisorTimeout, HypervisorUnavailable
from agent.host.domain_xml import parse
from agent.host.hypervisor import Hypervisor
from agent.host.libvirt_link import DomainEvent
from tests.lab.fixtures import GuestFactory
from tests.lab.guest import Guest
from tests.lab.host import LabHost
from tests.lab.paths import HOOK, NVRAM, SWTPM

pytestmark = pytest.mark.real

DEADLINE_S = 4.0
#: Holds the start of the guest `held` for as long as /run/hold exists.
HOLDING_HOOK = '#!/bin/sh\n[ "$1 $2" = "held prepare" ] || exit 0\nwhile [ -e /run/hold ]; do sleep 0.02; done\n'


@pytest.fixture(scope="module")
def host(lab_ready: None) -> Iterator[LabHost]:
    with LabHost("hv") as made:
        yield made


@pytest.fixture
def guests(host: LabHost) -> Iterator[GuestFactory]:
    made: list[Guest] = []

    def define(name: str, **shape: object) -> Guest:
        made.append(host.define_guest(name, disks=1, **shape))  # type: ignore[arg-type]
        return made[-1]

    yield define
    for guest in made:
        guest.remove()


@pytest.fixture
async def hypervisor(host: LabHost) -> AsyncIterator[Hypervisor]:
    connected = asyncio.Event()
    opened = Hypervisor(host.uri, deadline_s=DEADLINE_S)
    opened.on_connected(connected.set)
    async with opened, asyncio.timeout(60):
        await connected.wait()
        yield opened


async def until_connected(hypervisor: Hypervisor) -> None:
    connected = asyncio.Event()
    withdraw = hypervisor.on_connected(connected.set)
    if not hypervisor.connected:
        await asyncio.wait_for(connected.wait(), 10)
    withdraw()


async def until_held_up(hypervisor: Hypervisor, uuid: UUID) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await hypervisor.domain(uuid)
            except HypervisorTimeout:
                return


def uuid_of(guest: Guest) -> UUID:
    return UUID(str(guest.uuid))


@pytest.mark.case("F6")
async def test_a_restart_of_libvirtd_is_healed_without_a_call(
    host: LabHost, hypervisor: Hypervisor, guests: GuestFactory
) -> None:
    guest = guests("survivor")
    await asyncio.to_thread(host.kill_libvirtd)
    with pytest.raises(HypervisorUnavailable):
        await hypervisor.domains()

    await asyncio.to_thread(host.start_libvirtd)
    await until_connected(hypervisor)
    events = hypervisor.events()
    await asyncio.to_thread(host.virsh, "autostart", guest.name)
    await asyncio.to_thread(host.virsh, "domrename", guest.name, "renamed")

    assert (await hypervisor.domain(uuid_of(guest))).name == "renamed"
    event = await asyncio.wait_for(anext(events), 10)
    assert event == DomainEvent(kind="renamed", uuid=uuid_of(guest), name="renamed", old_name="survivor")
    await asyncio.to_thread(host.virsh, "domrename", "renamed", "survivor")


@pytest.mark.case("F6")
async def test_a_restart_between_two_calls_is_not_noticed_by_the_caller(host: LabHost, guests: GuestFactory) -> None:
    guests("steady")
    lone = Hypervisor(host.uri, deadline_s=30)
    await asyncio.gather(lone.domains(), lone.versions())  # two connections that the restart makes stale

    host.restart_libvirtd()  # blocks the loop on purpose: the notice of the closed connection cannot come first

    assert [domain.name for domain in await lone.domains()] == ["steady"]


@pytest.mark.case("F6")
async def test_a_libvirtd_that_hangs_is_an_error_within_the_deadline_and_no_more_once_it_goes_on(
    host: LabHost, hypervisor: Hypervisor, guests: GuestFactory
) -> None:
    guest = guests("frozen")
    clock = asyncio.get_running_loop().time
    host.pause_libvirtd()
    try:
        began = clock()
        calls = [hypervisor.domain(uuid_of(guest)) for _ in range(20)]
        answers = await asyncio.gather(hypervisor.domains(), *calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {HypervisorTimeout}
        assert DEADLINE_S <= clock() - began < DEADLINE_S + 1
    finally:
        host.resume_libvirtd()

    await until_connected(hypervisor)
    assert [domain.name for domain in await hypervisor.domains()] == ["frozen"]
    assert (await hypervisor.domain(uuid_of(guest))).state == "shut-off"


@pytest.mark.case("F6")
def test_many_calls_on_a_libvirtd_that_hangs_again_and_again_do_not_crash_the_process(
    host: LabHost, tmp_path: Path
) -> None:
    words = [sys.executable, "-X", "faulthandler", "-m", "tests.agent.host.hanging", host.uri]
    treat = {"pause\n": host.pause_libvirtd, "resume\n": host.resume_libvirtd}
    errors = tmp_path / "stderr"
    try:
        with (
            errors.open("w") as stderr,
            subprocess.Popen(words, stdin=PIPE, stdout=PIPE, stderr=stderr, text=True) as program,
        ):
            assert program.stdin is not None
            assert program.stdout is not None
            for line in program.stdout:
                treat[line]()
                program.stdin.write("done\n")
                program.stdin.flush()
    finally:
        host.resume_libvirtd()

    assert program.returncode == 0, errors.read_text()


async def test_what_nobody_waits_for_any_more_is_not_begun_once_libvirtd_goes_on(host: LabHost) -> None:
    begun: list[object] = []
    async with Hypervisor(host.uri, deadline_s=2.0) as hasty:
        await until_connected(hasty)
        host.pause_libvirtd()
        try:
            with pytest.raises(HypervisorTimeout):
                await hasty._host_call("late", begun.append)
        finally:
            host.resume_libvirtd()
        await hasty._host_call("late", id)  # its turn comes when the first one has ended

    assert begun == []


@pytest.mark.case("F6")
async def test_a_domain_whose_hook_sleeps_holds_up_nobody_else(
    host: LabHost, hypervisor: Hypervisor, guests: GuestFactory
) -> None:
    held, other = guests("held", tpm=False, uefi=False), guests("other")
    hold, hook = host.path("/run/hold"), host.path(HOOK)
    original = hook.read_bytes()
    hook.write_text(HOLDING_HOOK)
    hold.touch()
    starting = asyncio.create_task(asyncio.to_thread(host.virsh, "start", "held"))
    try:
        await until_held_up(hypervisor, uuid_of(held))
        asked = [asyncio.create_task(hypervisor.domain(uuid_of(held))) for _ in range(20)]
        await asyncio.sleep(0)

        found = await asyncio.wait_for(hypervisor.domain(uuid_of(other)), DEADLINE_S / 2)
        assert found.name == "other"

        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(answer) for answer in answers} == {HypervisorTimeout}
    finally:
        hold.unlink()
        await starting
        hook.write_bytes(original)

    assert (await hypervisor.domain(uuid_of(held))).state == "running"
    assert len(await hypervisor.domains()) == 2


async def test_a_domains_whole_life_is_told(host: LabHost, hypervisor: Hypervisor, guests: GuestFactory) -> None:
    events = hypervisor.events()
    guest = guests("lively")
    for words in (("start",), ("suspend",), ("resume",), ("destroy",)):
        await asyncio.to_thread(host.virsh, *words, guest.name)
    await asyncio.to_thread(host.virsh, "undefine", guest.name, "--nvram")

    async with asyncio.timeout(10):
        seen = [await anext(events) for _ in range(4)]

    assert [event.kind for event in seen] == ["defined", "started", "stopped", "undefined"]
    with pytest.raises(DomainNotFound):
        await hypervisor.domain(uuid_of(guest))


async def test_an_efi_domain_names_its_nvram_as_we_compute_it(
    host: LabHost, hypervisor: Hypervisor, guests: GuestFactory
) -> None:
    guest = guests('it\'s "ünï" & <so on>')
    before = parse(await hypervisor.inactive_xml(uuid_of(guest)), NVRAM, SWTPM)
    await asyncio.to_thread(host.virsh, "start", guest.name)

    live = parse(await hypervisor.live_xml(uuid_of(guest)), NVRAM, SWTPM)
    await asyncio.to_thread(host.virsh, "destroy", guest.name)
    after = parse(await hypervisor.inactive_xml(uuid_of(guest)), NVRAM, SWTPM)

    assert before.nvram == live.nvram == after.nvram == NVRAM / f"{guest.name}_VARS.fd"
    assert host.path(NVRAM / f"{guest.name}_VARS.fd").exists()
    assert (live.firmware, live.loader is not None, live.template is not None) == ("uefi", True, True)
    assert (before.tpm, before.tpm_directory) == ("2.0", SWTPM / str(guest.uuid))
    assert host.path(SWTPM / str(guest.uuid) / "tpm2" / "tpm2-00.permall").exists()


async def test_defining_what_was_read_changes_nothing(hypervisor: Hypervisor, guests: GuestFactory) -> None:
    graphics = "<graphics type='vnc' port='-1' autoport='yes' passwd='hush'/><video><model type='vga'/></video>"
    guest = guests("same", devices=graphics)
    before = await hypervisor.inactive_xml(uuid_of(guest), secure=True)

    assert await hypervisor.define(before) == uuid_of(guest)

    assert await hypervisor.inactive_xml(uuid_of(guest), secure=True) == before
    assert "hush" in before
    assert "hush" not in await hypervisor.inactive_xml(uuid_of(guest))


async def test_managed_save_and_autostart_are_told(host: LabHost, hypervisor: Hypervisor, guests: GuestFactory) -> None:
    guest = guests("saved", tpm=False, uefi=False)
    await asyncio.to_thread(host.virsh, "autostart", guest.name)
    await asyncio.to_thread(host.virsh, "start", guest.name)
    assert (await hypervisor.domain(uuid_of(guest))).active
    await asyncio.to_thread(host.virsh, "managedsave", guest.name)

    found = await hypervisor.domain(uuid_of(guest))

    assert (found.state, found.managed_save, found.autostart, found.persistent) == ("shut-off", True, True, True)
    await asyncio.to_thread(host.virsh, "managedsave-remove", guest.name)


async def test_an_unknown_domain_is_not_found_by_the_real_libvirtd_either(hypervisor: Hypervisor) -> None:
    with pytest.raises(DomainNotFound):
        await hypervisor.inactive_xml(uuid4())


async def test_versions_are_those_of_the_installed_programs(hypervisor: Hypervisor) -> None:
    versions = await hypervisor.versions()

    assert versions.libvirt.count(".") == 2
    assert versions.qemu is not None
    assert int(versions.qemu.split(".")[0]) >= 7
    assert Path("/usr/bin/qemu-system-x86_64").exists()


async def test_undefining_leaves_every_file_and_can_be_repeated(
    host: LabHost, guests: GuestFactory, hypervisor: Hypervisor
) -> None:
    guest = guests("undefined")
    guest.start()
    guest.destroy()
    files = [host.path(guest.nvram), host.path(guest.tpm_dir / "tpm2-00.permall"), host.path(guest.disk_path("vda"))]
    await hypervisor.undefine(guest.uuid)
    await hypervisor.undefine(guest.uuid)
    assert [path.exists() for path in files] == [True] * 3
    with pytest.raises(DomainNotFound):
        await hypervisor.domain(guest.uuid)
    for path in files[:2]:
        path.unlink()


async def test_a_secret_is_there_or_is_not(host: LabHost, hypervisor: Hypervisor, tmp_path: Path) -> None:
    secret = uuid4()
    assert not await hypervisor.has_secret(secret)
    xml = tmp_path / "secret.xml"
    xml.write_text(f"<secret ephemeral='yes'><uuid>{secret}</uuid><usage type='vtpm'><name>t</name></usage></secret>")
    host.virsh("secret-define", str(xml))
    assert await hypervisor.has_secret(secret)
