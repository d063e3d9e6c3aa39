"""Input/output errors at a chosen write, sync, rename or removal, by a small library that is preloaded.

``environment()`` builds the library and gives what a process is to be started with; in that process, ``Page.found()``
arms it. Layout and calls: ``io_errors.c``.
"""

import mmap
import os
import struct
import subprocess
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).with_suffix(".c")
VARIABLE = "COLDFRAME_IO_ERRORS"
_NUMBERS = struct.Struct("=qqqq")
_NAME_BYTES = 1024
_SIZE = _NUMBERS.size + 2 * _NAME_BYTES


def environment(directory: Path) -> dict[str, str]:
    """Build the library in ``directory``, which exists; return the environment of a process that obeys the page."""
    library, page = directory / "io_errors.so", directory / "io_errors.page"
    warnings = ("-Wall", "-Wextra", "-Werror")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", *warnings, "-o", library, SOURCE, "-ldl"], check=True)
    page.write_bytes(bytes(_SIZE))
    return {**os.environ, "LD_PRELOAD": str(library), VARIABLE: str(page)}


class Page:
    """What is shared with the library in this process and in all that it started."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)

    @classmethod
    def found(cls) -> Self:
        """Return the page that this process was started with."""
        return cls(Path(os.environ[VARIABLE]))

    def arm(self, below: Path, at: int, *, lasting: bool) -> None:
        """Count from 0 on what changes files below a directory, and let call number ``at`` fail; -1 fails none.

        Files in a directory ``libvirt`` right below it are left out: they stand for another program.
        """
        self._map[_NUMBERS.size :] = bytes(2 * _NAME_BYTES)
        name = os.fsencode(below)
        self._map[_NUMBERS.size : _NUMBERS.size + len(name)] = name
        self._map[: _NUMBERS.size] = _NUMBERS.pack(1, 0, at, lasting)

    def disarm(self) -> int:
        """Let all calls work; return how many were counted."""
        _, count, at, lasting = _NUMBERS.unpack(self._map[: _NUMBERS.size])
        self._map[: _NUMBERS.size] = _NUMBERS.pack(0, count, at, lasting)
        return int(count)

    @property
    def failed(self) -> str:
        """The call that was made to fail, and its path below the directory; empty where none was."""
        return self._map[_NUMBERS.size + _NAME_BYTES :].rstrip(b"\0").decode()
