"""What an outside command may touch, laid upon the thread that starts it and inherited by what it starts.

The kernel keeps all of this per thread, so a thread of its own takes it upon itself, starts the command and ends: no
code runs between fork and exec, and no helper program is needed. None of it takes a privilege.

* Landlock (landlock(7), Linux 5.13): no file but the named ones, whatever their names lead to meanwhile. The rules
  hold the files themselves. TCP too from 6.7, foreign signals and abstract sockets from 6.12.
* seccomp (seccomp(2)): no sockets of any kind, so no ``nbd:`` or ``http:`` name leads anywhere.
* capabilities(7): of root's powers only that of opening files which others own. Without the gain that exec gives root
  (``no_new_privs``) the command has what its thread had.

Where the kernel is without Landlock the other two hold alone.
"""

import ctypes
import errno
import os
import shutil
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SYSTEM_READ = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/etc/ld.so.preload",
    "/etc/gnutls", "/etc/crypto-policies", "/etc/gcrypt", "/proc/sys", "/sys/devices/system/cpu", "/dev/urandom",
)  # fmt: skip
_SYSTEM_WRITE = ("/dev/null",)  # QEMU tries its file locks on it

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_SECCOMP_MODE_FILTER = 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_NO_LANDLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}  # EPERM: a system call filter that is older than it
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
_EXECUTE = 1 << 0  # not handled: what a command runs is its own affair
_FILE_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many there are, <linux/landlock.h>
_TCP, _SCOPES = 3, 3

_CAPABILITY_VERSION = 0x20080522
_CAP_DAC_OVERRIDE = 1 << 1

#: Machine to AUDIT_ARCH and number of socket(2), <linux/audit.h> and each architecture's <asm/unistd.h>.
_MACHINES = {
    "x86_64": (0xC000003E, 41),
    "aarch64": (0xC00000B7, 198),
    "riscv64": (0xC00000F3, 198),
    "ppc64le": (0xC0000015, 326),
    "s390x": (0x80000016, 359),
}
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EACCES

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Bounds:
    """What one command may use: open descriptors of the only files of ours that it may read, or read and write.

    ``memory_bytes`` is address space, ``file_bytes`` the largest size that it may give a file (0: it writes none).
    """

    readable: Sequence[int] = ()
    writable: Sequence[int] = ()
    memory_bytes: int = 3 << 29
    file_bytes: int = 0


def landlock_version() -> int:
    """Return the kernel's Landlock interface version, 0 where there is none."""
    found: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    return max(0, found)


def this_thread(command: str, bounds: Bounds) -> None:
    """Confine the calling thread for good; it starts ``command`` and must end. Raises ``OSError``."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    version = landlock_version()
    if version:
        _restrict_files(version, command, bounds)
    _refuse_sockets()
    _drop_capabilities()


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _restrict_files(version: int, command: str, bounds: Bounds) -> None:
    handled = ((1 << _FILE_RIGHTS_OF_ABI[min(version, 5)]) - 1) & ~_EXECUTE
    fields = [handled, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0]
    wanted = fields[: 1 if version < 4 else 2 if version < 6 else 3]
    attributes = struct.pack(f"{len(wanted)}Q", *wanted)
    rules = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0 and ctypes.get_errno() in _NO_LANDLOCK:
        return
    _checked(rules, "landlock")
    try:
        write = handled & (_READ_FILE | _WRITE_FILE | _TRUNCATE)
        _allow_system(rules, _programs(command), _READ_FILE | _READ_DIR)
        _allow_system(rules, _SYSTEM_WRITE, write)
        for descriptor in bounds.readable:
            _allow(rules, descriptor, _READ_FILE)
        for descriptor in bounds.writable:
            _allow(rules, descriptor, write)
        _checked(_libc.syscall(_RESTRICT_SELF, rules, 0), "landlock")
    finally:
        os.close(rules)


def _programs(command: str) -> Iterable[str]:
    """Name what any program reads, and the place of this one, which may be none of the system's."""
    found = shutil.which(command)
    return (*_SYSTEM_READ, *([str(Path(found).parent)] if found else []))


def _allow_system(rules: int, paths: Iterable[str], rights: int) -> None:
    for path in paths:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue  # not every system has each
        try:
            _allow(rules, descriptor, rights if Path(path).is_dir() else rights & ~_READ_DIR)
        finally:
            os.close(descriptor)


def _allow(rules: int, descriptor: int, rights: int) -> None:
    _checked(_libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0), "landlock")


def _refuse_sockets() -> None:
    """Answer EACCES to socket(2). A machine that is not listed has no such filter."""
    machine = _MACHINES.get(os.uname().machine)
    if machine is None or sys.maxsize < 1 << 32:
        return
    architecture, number = machine
    program = [
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 1, 0, architecture),
        (0x06, 0, 0, _KILL),
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 1, number),
        (0x06, 0, 0, _REFUSE),
        (0x06, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    pointed = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    _checked(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, pointed, 0, 0), "seccomp")


def _drop_capabilities() -> None:
    """Keep at most CAP_DAC_OVERRIDE: images belong to QEMU's user, or to whoever made them."""
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    _checked(_libc.capget(header, data), "capget")
    kept = struct.unpack("6I", data.raw)[1] & _CAP_DAC_OVERRIDE
    _checked(_libc.capset(header, struct.pack("6I", kept, kept, 0, 0, 0, 0)), "capset")
