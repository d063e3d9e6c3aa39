"""The private libvirt hosts do what the other tests rely on."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.lab import network
from tests.lab.errors import LabError
from tests.lab.fixtures import GuestFactory
from tests.lab.host import TPM_LOST, LabHost
from tests.lab.namespace import Namespace
from tests.lab.paths import HOOK, PROJECT
from tests.lab.waiting import wait_until

pytestmark = pytest.mark.real

INDEX = 0x1500016
REFUSING_HOOK = '#!/bin/sh\n[ "$2" != prepare ] || { echo "not now" >&2; exit 1; }\n'

#: Makes a host with a running guest, reports on it, and waits to be killed.
DOOMED = """
import os, sys, time
from tests.lab.host import LabHost
from tests.lab.network import link
with LabHost("doomed", hook=False) as host:
    link(None, host, "10.79.0.1/24", "10.79.0.2/24", name="cf-doomed")
    host.define_guest("vm").start()
    host.pause_libvirtd()
    print(os.readlink(f"/proc/{host.pid}/ns/mnt"), os.readlink(f"/proc/{host.pid}/ns/net"), host.root, flush=True)
    time.sleep(600)
"""


def members(*namespaces: str) -> list[str]:
    """Return the command lines of the processes that live in any of these namespaces (``mnt:[…]``, ``net:[…]``)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = {str((process / "ns" / kind).readlink()) for kind in ("mnt", "net")}
            if inside & set(namespaces):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.mark.parametrize("check", [True, False])
def test_a_start_that_libvirt_and_swtpm_spoil_is_tried_once_more(
    lab_host: LabHost, check: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, spoiled = lab_host.run, iter([True])

    def spoil(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return run(["sh", "-c", f'echo "{TPM_LOST}" >&2; exit 1'] if next(spoiled, False) else command, **options)

    monkeypatch.setattr(lab_host, "run", spoil)
    assert lab_host.virsh("list", check=check).returncode == 0
    assert next(spoiled, None) is None
    with pytest.raises(LabError):
        lab_host.virsh("start", "nobody")


@pytest.mark.slow
def test_a_guest_keeps_variable_file_and_tpm_index_over_a_power_off(lab_host: LabHost, guest: GuestFactory) -> None:
    vm = guest()
    vm.boot()
    vm.set_variable("LabColour", "dark green")
    vm.write_file("note.txt", "written by the guest")
    vm.shutdown()
    assert vm.state() == "shut off"
    key = vm.tpm.ek_public()
    vm.tpm.write_index(INDEX, b"sealed")
    vm.disk("vda").put_file("host.txt", b"written by the host")
    assert vm.disk("vda").get_file("note.txt") == b"written by the guest\r\n"

    vm.boot()
    assert vm.get_variable("LabColour") == "dark green"
    assert vm.get_variable("LabNone") is None
    assert vm.read_file("host.txt") == "written by the host"
    assert vm.read_file("none.txt") is None
    vm.shutdown()
    assert vm.tpm.read_index(INDEX) == b"sealed"
    assert vm.tpm.read_index(INDEX + 1) is None
    assert vm.tpm.ek_public() == key
    assert lab_host.path(vm.nvram).stat().st_size > 0


def test_a_running_guests_tpm_is_not_touched(guest: GuestFactory) -> None:
    vm = guest()
    vm.start()
    with pytest.raises(LabError, match="TPM at"):
        vm.tpm.write_index(INDEX, b"torn")


def test_firmware_can_be_named_in_the_domain_xml(lab_host: LabHost, guest: GuestFactory) -> None:
    vm = guest(firmware="explicit", tpm=False)
    vm.start()
    vm.destroy()
    assert vm.xml().findtext("./os/nvram") == str(vm.nvram)
    assert lab_host.path(vm.nvram).exists()


def test_a_bios_guest_has_neither_nvram_nor_tpm(lab_host: LabHost, guest: GuestFactory) -> None:
    vm = guest(uefi=False, tpm=False, disks=1)
    vm.start()
    assert vm.state() == "running"
    vm.destroy()
    assert not lab_host.path(vm.nvram).exists()
    assert not lab_host.path(vm.tpm_dir).exists()


@pytest.mark.parametrize("name", ["a b & <c>", "--help", "Prüfung 'x'"])
def test_names_need_no_care(guest: GuestFactory, name: str) -> None:
    vm = guest(name, disks=1, tpm=False)
    assert vm.xml().findtext("name") == name
    assert vm.state() == "shut off"


def test_libvirtd_can_crash_and_come_back_while_a_guest_runs(guest: GuestFactory, lab_host: LabHost) -> None:
    vm = guest(disks=1, tpm=False)
    vm.start()
    lab_host.kill_libvirtd()
    assert lab_host.virsh("list", check=False).returncode != 0
    lab_host.restart_libvirtd()
    assert vm.state() == "running"


def test_libvirtd_can_hang(lab_host: LabHost) -> None:
    lab_host.pause_libvirtd()
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            lab_host.virsh("list", timeout_s=0.5)
    finally:
        lab_host.resume_libvirtd()
    lab_host.virsh("list")


def test_the_hook_is_in_force_from_the_first_start_and_can_be_removed(tmp_path: Path) -> None:
    hook = tmp_path / "qemu"
    hook.write_text(REFUSING_HOOK)
    with LabHost("hooked", hook=False) as host:
        vm = host.define_guest("vm", disks=1, tpm=False)
        host.install_hook(hook)
        host.restart_libvirtd()
        with pytest.raises(LabError, match="not now"):
            vm.start()
        host.remove_hook()
        vm.start()
        assert vm.state() == "running"


def test_two_hosts_run_side_by_side_and_talk_until_the_cable_is_cut() -> None:
    with LabHost("kvm-a") as a, LabHost("kvm-b") as b:
        for host in (a, b):
            host.define_guest("same-name", disks=1, tpm=False)
            assert host.virsh("list", "--all", "--name").stdout.split() == ["same-name"]
        cable = network.link(a, b)
        assert hears(a, b, cable.b.address)
        cable.cut()
        assert not hears(a, b, cable.b.address)
        cable.restore()
        assert hears(a, b, cable.b.address)
        cable.b.set_address("10.77.0.9/24")
        assert cable.b.address == "10.77.0.9"
        assert hears(a, b, "10.77.0.9")


def hears(sender: Namespace, receiver: Namespace, address: str) -> bool:
    """Whether a datagram from one host arrives at the other."""
    listen = (
        "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 9999)); s.settimeout(0.7);"
        "print('ready', flush=True); print(s.recv(9))"
    )
    send = f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'ping', ('{address}', 9999))"
    with receiver.popen([sys.executable, "-IS", "-c", listen]) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        sender.run([sys.executable, "-IS", "-c", send], check=False)
        return listener.communicate()[0] == "b'ping'\n"


def test_the_machine_itself_stays_as_it_was() -> None:
    watched = [Path(path) for path in ("/etc/coldframe", "/var/lib/coldframe", "/run/libvirt", str(HOOK))]
    before = [path.exists() for path in watched]
    with LabHost("guest-of-honour", hook=False) as host:
        host.run(["touch", "/etc/coldframe/mark", "/var/lib/coldframe/mark", "/run/mark", "/etc/libvirt/mark"])
        assert host.path("/etc/coldframe/mark").exists()
        assert [path.exists() for path in watched] == before
        assert not Path("/etc/libvirt/mark").exists()
        assert not Path("/run/mark").exists()
        assert host.run(["hostname"]).stdout.strip() == "guest-of-honour" != socket.gethostname()
        assert host.run(["test", "-e", "/dev/kvm"], check=False).returncode == 1
        root = host.root
    assert not root.exists()
    assert [path.exists() for path in watched] == before


def test_libvirt_answers_outside_the_namespace_too(lab_host: LabHost) -> None:
    done = subprocess.run(["virsh", "-c", lab_host.uri, "hostname"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == lab_host.name


def test_a_process_inside_is_signalled_and_gone(lab_host: LabHost) -> None:
    process = lab_host.spawn("sleeper", ["sleep", "600"])
    assert process.alive()
    process.end()
    assert not process.alive()
    process.end()


def test_everything_is_gone_when_the_test_process_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", DOOMED], cwd=PROJECT, stdout=subprocess.PIPE, text=True) as doomed:
        assert doomed.stdout is not None
        mounts, net, root = doomed.stdout.readline().split()
        commands = members(mounts)
        for expected in ("libvirtd", "virtlogd", "qemu-system", "swtpm"):
            assert any(expected in command for command in commands), expected
        assert Path("/sys/class/net/cf-doomed").exists()
        doomed.kill()
    killed_at = time.monotonic()
    wait_until("the end of the host's processes", lambda: not members(mounts, net), 5)
    wait_until("the end of the cable", lambda: not Path("/sys/class/net/cf-doomed").exists(), 5)
    assert time.monotonic() - killed_at < 5
    assert not Path(root).exists()
    assert root not in Path("/proc/self/mountinfo").read_text()
