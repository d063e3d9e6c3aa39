"""The first process of a private host: makes its mounts, then lives exactly as long as its standard input.

Started by ``namespace.py`` as process 1 of a new PID namespace. The plan arrives as one line of JSON; ``ready`` or
``failed: …`` goes out. When the other end of standard input is gone, whichever way its owner died, this process
ends and the kernel ends everything else in the namespace with it.

Runs under ``python -I -S``: standard library only, nothing of this project.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

# mount(2)
MS_NOSUID, MS_NOEXEC, MS_BIND, MS_MOVE, MS_REC = 0x2, 0x8, 0x1000, 0x2000, 0x4000
MNT_DETACH = 2

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "net/tun")

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    """Call mount(2); raises OSError with both paths named."""
    encoded = [None if word is None else os.fsencode(word) for word in (source, target, kind, options)]
    if libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


def ensure_mountpoint(target: Path, scratch: Path) -> None:
    """Make ``target`` exist without writing to the machine: a missing one is made in an overlay over its parent.

    Where the kernel refuses the overlay (inside some containers) an empty directory is made for real.
    """
    if target.exists():
        return
    parent = next(ancestor for ancestor in target.parents if ancestor.exists())
    layer = scratch / str(parent).strip("/").replace("/", "-")
    for part in ("upper", "work"):
        (layer / part).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={parent},upperdir={layer}/upper,workdir={layer}/work"
    try:
        mount("overlay", str(parent), "overlay", 0, options)
    except OSError as err:
        sys.stderr.write(f"no overlay over {parent} ({err}): {target} is made on the machine itself\n")
    target.mkdir(parents=True)


def private_devices(scratch: Path) -> None:
    """Put a small /dev in place of the machine's: no /dev/kvm, terminals and shared memory of its own."""
    new = scratch / "dev"
    new.mkdir()
    mount("tmpfs", str(new), "tmpfs", MS_NOSUID, "mode=755,size=64m")
    for name in DEVICES:
        source, target = Path("/dev", name), new / name
        if source.exists():
            target.parent.mkdir(exist_ok=True)
            target.touch()
            mount(str(source), str(target), None, MS_BIND)
    (new / "pts").mkdir()
    mount("devpts", str(new / "pts"), "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    (new / "shm").mkdir()
    (new / "shm").chmod(0o1777)
    for name, points_to in {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1"}.items():
        (new / name).symlink_to(points_to)
    (new / "stderr").symlink_to("fd/2")
    mount(str(new), "/dev", None, MS_MOVE)


def private_sysfs() -> None:
    """Show this network namespace's interfaces under /sys, and no control groups: libvirt must not make any."""
    libc.umount2(b"/sys", MNT_DETACH)
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NOEXEC)


def apply(plan: dict[str, Any]) -> None:
    """Make the host that ``plan`` describes.

    ``hostname`` or null, ``scratch`` (a directory), ``sysfs`` and ``devices`` (whether to make private ones),
    ``binds``, a list of source and target, and ``remove``, a directory to remove in the end or null.
    """
    scratch = Path(plan["scratch"])
    if plan["hostname"] is not None:
        socket.sethostname(plan["hostname"])
    if plan["sysfs"]:
        private_sysfs()
    if plan["devices"]:
        private_devices(scratch)
    # Every mountpoint first: an overlay that is mounted later would hide the binds below it.
    for _, target in plan["binds"]:
        ensure_mountpoint(Path(target), scratch)
    for source, target in plan["binds"]:
        mount(source, target, None, MS_BIND | MS_REC)


def leave(root: str) -> None:
    """End every other process and remove the directory that was made for this host."""
    os.kill(-1, signal.SIGKILL)
    shutil.rmtree(root, ignore_errors=True)


def main() -> None:
    """Set up, report, wait for the end of standard input."""
    plan = json.loads(sys.stdin.readline())
    try:
        apply(plan)
    except OSError as err:
        sys.stdout.write(f"failed: {err}\n")
        return
    # Orphans of the namespace become children of process 1; ignoring SIGCHLD lets the kernel reap them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while os.read(0, 4096):
        pass
    if plan["remove"]:
        leave(plan["remove"])


if __name__ == "__main__":
    main()
