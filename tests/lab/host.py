"""A private libvirt host: libvirtd, QEMU, swtpm and OVMF as on a real one, in namespaces of their own.

Inside, every path is the usual one (``/var/lib/libvirt``, ``/etc/libvirt/hooks``, ``/run/libvirt/libvirt-sock``);
outside, the same files lie below the host's root. The rest of the machine, its libvirt included, is not touched.
"""

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from types import TracebackType
from uuid import UUID

from tests.lab.errors import LabError
from tests.lab.guest import Guest, Shape
from tests.lab.namespace import Namespace, Process
from tests.lab.paths import BINDS, HOOK, HOOK_CONF, IMAGES, LIBVIRT_SOCKET, NVRAM, PROJECT, STATE_DIR
from tests.lab.waiting import wait_until

LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:stderr"
"""

# No security driver: the machine's policy knows nothing of paths below a test's directory. No mount namespace per
# guest: it would hide the machine's devices, and the host's own /dev has done so already.
#: libvirt 9.0 gives the socket of a TPM to QEMU's user as soon as it is there. Where swtpm 0.7 comes to set its mode
#: only then ("Could not change permssions on UnixIO socket" in its log), it ends, and nobody listens.
TPM_LOST = "swtpm.sock': Connection refused"
QEMU_CONF = """\
security_driver = "none"
namespaces = []
"""


class LabHost(Namespace):
    """One private host. A context manager; libvirtd is up inside the block.

    ``root`` must be short (the path of a unix socket has at most 107 bytes) and not below /run; without one, a
    directory is made under /tmp and removed at the end. ``hook`` puts the project's hooks/qemu in place before
    libvirtd starts, as libvirtd ignores a hook that comes when there was none at its start. ``images`` is a directory
    that takes the place of the host's own images, as shared storage does: give several hosts the same one.
    """

    def __init__(self, name: str, root: Path | None = None, *, hook: bool = True, images: Path | None = None) -> None:
        where = root or Path(tempfile.mkdtemp(prefix="cf-", dir="/tmp"))
        binds = BINDS if images is None else BINDS | {str(IMAGES): str(images.resolve())}
        if images is not None:
            (where / BINDS["/var/lib/libvirt"] / "images").mkdir(parents=True)  # what it is mounted on
        super().__init__(name, where, binds, devices=True, temporary=root is None)
        self._with_hook = hook
        self._libvirtd: Process | None = None
        self._virtlogd: Process | None = None
        self.guests: list[Guest] = []

    def __enter__(self) -> "LabHost":
        try:
            self.open()
            self.start()
        except BaseException:
            self.close()  # __exit__ is not called for what fails here
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything inside; a directory that was made for this host is removed."""
        for guest in self.guests:
            guest.console.close()
        super().close()

    @property
    def uri(self) -> str:
        """The libvirt URI for processes outside. Inside it is plain ``qemu:///system``."""
        return f"qemu+unix:///system?socket={self.path(LIBVIRT_SOCKET)}"

    def start(self) -> None:
        """Write the configuration, put the hook in place, start virtlogd and libvirtd; returns when it answers."""
        for directory in (IMAGES, NVRAM, LIBVIRT_SOCKET.parent, HOOK.parent):
            self.path(directory).mkdir(parents=True, exist_ok=True)
        self.path(IMAGES).chmod(0o711)
        self.path(STATE_DIR).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path("/etc/libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF)
        self.path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
        self._borrow_owner("/var/lib/swtpm-localca")
        if self._with_hook:
            self.install_hook()
        self._start_daemons()

    def _start_daemons(self) -> None:
        self._virtlogd = self.spawn("virtlogd", ["virtlogd", "-p", "/run/virtlogd.pid"])
        self.start_libvirtd()

    def reboot(self) -> None:
        """Do to libvirt what a power cut does: its processes end, all below /run is gone, guests are autostarted anew.

        Guests must be off; other daemons on this host are the caller's to end and start.
        """
        self.kill_libvirtd()
        if self._virtlogd is not None:
            self._virtlogd.end(signal.SIGKILL)
        shutil.rmtree(self.path(LIBVIRT_SOCKET.parent))
        self.path(LIBVIRT_SOCKET.parent).mkdir()
        for name in ("virtlogd.pid", "libvirtd.pid"):
            self.path(f"/run/{name}").unlink(missing_ok=True)
        self._start_daemons()

    def _borrow_owner(self, directory: str) -> None:
        """Give the private directory the owner and mode that the distribution gave the real one."""
        real, private = Path(directory), self.path(directory)
        if real.exists():
            facts = real.stat()
            private.chmod(facts.st_mode & 0o7777)
            shutil.chown(private, facts.st_uid, facts.st_gid)

    # libvirtd

    @property
    def libvirtd(self) -> Process:
        """The running libvirtd; raises LabError when there is none."""
        if self._libvirtd is None:
            raise LabError(f"{self.name} has no libvirtd yet")
        return self._libvirtd

    def start_libvirtd(self, timeout_s: float = 60) -> None:
        """Start libvirtd and wait until it answers."""
        self._libvirtd = self.spawn("libvirtd", ["libvirtd", "-p", "/run/libvirtd.pid"])
        wait_until(f"libvirtd of {self.name}", self._libvirtd_listens, timeout_s)
        self.virsh("list", timeout_s=timeout_s)

    def _libvirtd_listens(self) -> bool:
        if not self.libvirtd.alive():
            raise LabError(f"libvirtd of {self.name} ended:\n{self.libvirtd.log.read_text(errors='replace')}")
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(self.path(LIBVIRT_SOCKET)))
            return True
        return False

    def kill_libvirtd(self) -> None:
        """End libvirtd as a crash would; guests keep running."""
        self.libvirtd.end(signal.SIGKILL)

    def restart_libvirtd(self) -> None:
        """Stop libvirtd in order, if it runs, and start it again; guests keep running."""
        self.libvirtd.end()
        self.start_libvirtd()

    def pause_libvirtd(self) -> None:
        """Make libvirtd hang: it accepts connections and answers nothing."""
        self.libvirtd.send(signal.SIGSTOP)

    def resume_libvirtd(self) -> None:
        """Let a paused libvirtd go on."""
        self.libvirtd.send(signal.SIGCONT)

    def virsh(
        self, *words: str | Path, check: bool = True, input: str = "", timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run virsh inside; output and errors as ``run`` gives them. A file ``/dev/stdin`` reads ``input``.

        A start that libvirt and swtpm have spoiled between them is tried once more.
        """
        command = ["virsh", "-q", "-c", "qemu:///system", *words]
        again = partial(self.run, command, check=check, input=input, timeout_s=timeout_s)
        try:
            done = again()
        except LabError as err:
            if TPM_LOST not in str(err):
                raise
            return again()
        return again() if TPM_LOST in done.stderr else done

    # the hook

    def install_hook(self, source: Path = PROJECT / "hooks" / "qemu") -> None:
        """Install the hook with its configuration. libvirtd sees it at its next start or when it had a hook before."""
        hook, conf = self.path(HOOK), self.path(HOOK_CONF)
        hook.parent.mkdir(parents=True, exist_ok=True)
        conf.write_text(f"state_dir={STATE_DIR}\n")
        new = hook.with_name(".50-coldframe.new")  # libvirt skips names that begin with a dot
        shutil.copyfile(source, new)
        new.chmod(0o755)
        new.rename(hook)

    def remove_hook(self) -> None:
        """Take the hook away; libvirt then lets every start through."""
        self.path(HOOK).unlink(missing_ok=True)

    # guests

    def define_guest(
        self,
        name: str,
        *,
        disks: int = 2,
        uefi: bool = True,
        tpm: bool = True,
        size_mib: int = 32,
        firmware: str = "auto",
        uuid: UUID | None = None,
        devices: str = "",
    ) -> Guest:
        """Make the disks and define a VM that is shut off; see ``guest.Shape`` for ``firmware`` and ``devices``."""
        shape = Shape(
            name, disks=disks, uefi=uefi, tpm=tpm, size_mib=size_mib, firmware=firmware, uuid=uuid, devices=devices
        )
        guest = Guest.define(self, shape)
        self.guests.append(guest)
        return guest
