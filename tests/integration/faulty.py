"""System calls that fail at a chosen moment, by a small library that is preloaded.

``environment()`` builds the library and gives what a process is to be started with; in that process, ``Page.found()``
arms it. Layout and calls: ``faulty.c``. The agent gives its ``qemu-img`` an environment of its own and no file but the
images, so that one is met by a script of its name, which preloads the library again, and by memory that is no file.
"""

import ctypes
import enum
import os
import shutil
import struct
import threading
from pathlib import Path
from typing import Self

from tests.lab.preloaded import compiled

SOURCE = Path(__file__).with_suffix(".c")
VARIABLE = "COLDFRAME_FAULTY"
_NUMBERS = struct.Struct("=qqqqqqq")
_NAME_BYTES, _PROGRAM_BYTES = 1024, 64
_SIZE = _NUMBERS.size + 2 * _NAME_BYTES + _PROGRAM_BYTES
_IPC_PRIVATE, _IPC_CREAT, _IPC_RMID = 0, 0o1000, 0  # <linux/ipc.h>

_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p
_libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


class Calls(enum.IntFlag):
    """Groups of calls that can be made to fail."""

    CHANGES = 1  # write, sync, rename, link, remove, and the like, of files below the directory
    DESCRIPTORS = 2  # open, pipe, socket, pidfd_open, and the like
    PROCESSES = 4  # fork, vfork, pthread_create


def environment(directory: Path) -> dict[str, str]:
    """Build the library in ``directory``, which exists; return the environment of a process that obeys the page.

    The page lives as long as this process.
    """
    library = directory / "faulty.so"
    compiled(SOURCE, library)
    page = _libc.shmget(_IPC_PRIVATE, ctypes.c_size_t(_SIZE), _IPC_CREAT | 0o600)
    _attached(page)
    _libc.shmctl(page, _IPC_RMID, None)  # it goes with the last process that has it
    preload = {"LD_PRELOAD": str(library), VARIABLE: str(page)}
    tools = directory / "bin"
    tools.mkdir()
    shutil.copy(library, tools)  # a confined command may read what is beside it
    words = " ".join(f"{key}={value}" for key, value in (preload | {"LD_PRELOAD": f"{tools}/{library.name}"}).items())
    (tools / "qemu-img").write_text(f'#!/bin/sh\nexport {words}\nexec {shutil.which("qemu-img")} "$@"\n')
    (tools / "qemu-img").chmod(0o755)
    return {**os.environ, **preload, "PATH": f"{tools}:{os.environ['PATH']}"}


def _attached(page: int) -> memoryview:
    address = _libc.shmat(page, None, 0)
    if address in {None, ctypes.c_void_p(-1).value}:
        raise OSError(ctypes.get_errno(), "shared memory cannot be had")
    return memoryview((ctypes.c_char * _SIZE).from_address(address)).cast("B")


class Page:
    """What is shared with the library in this process and in all that it started."""

    def __init__(self, page: int) -> None:
        self._shared = _attached(page)

    @classmethod
    def found(cls) -> Self:
        """Return the page that this process was started with."""
        return cls(int(os.environ[VARIABLE]))

    def arm(self, below: Path, at: int, *, lasting: bool, calls: Calls, error: int, program: str = "") -> None:
        """Count calls from 0 on and let number ``at`` fail with ``error``; -1 fails none.

        An ``error`` of 0 kills the process that makes the call. With ``program`` only that one's calls count. Of files,
        only those below a directory count, where they are changed; those in a directory ``libvirt`` right below it
        stand for another program and do not.
        """
        texts = struct.pack(f"{_NAME_BYTES}s{_NAME_BYTES}s{_PROGRAM_BYTES}s", os.fsencode(below), b"", program.encode())
        tester = threading.get_native_id()
        self._shared[:] = _NUMBERS.pack(1, 0, at, lasting, calls, error, tester) + texts

    def disarm(self) -> int:
        """Let all calls work; return how many were counted."""
        count = _NUMBERS.unpack(self._shared[: _NUMBERS.size])[1]
        self._shared[:8] = bytes(8)
        return int(count)

    @property
    def failed(self) -> str:
        """The call that was made to fail, with the program and what it was about; empty where none was."""
        begin = _NUMBERS.size + _NAME_BYTES
        return bytes(self._shared[begin : begin + _NAME_BYTES]).rstrip(b"\0").decode()
