"""A wall clock of one daemon that a test steps while it runs, by a small library that is preloaded (``clock.c``)."""

import json
import mmap
import os
import struct
import subprocess
from datetime import timedelta
from pathlib import Path

_NANOSECONDS = struct.Struct("=q")
_FILE = "LAB_CLOCK"


class Clock:
    """How far a daemon's wall clock is from the machine's; its monotonic clock stays.

    ``directory`` exists, and is to be found under that name wherever the daemon runs.
    """

    def __init__(self, directory: Path, name: str) -> None:
        library, file = directory / f"{name}-clock.so", directory / f"{name}-clock"
        self._file, self._steps = file, _steps_beside(file)
        options = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror")
        subprocess.run(["gcc", *options, "-o", library, Path(__file__).with_suffix(".c")], check=True)
        file.write_bytes(_NANOSECONDS.pack(0))
        self._mapped = _mapped(file)
        self.environment = {"LD_PRELOAD": str(library), _FILE: str(file)}

    def step(self, by: timedelta) -> None:
        """Step it."""
        self._set(self.ahead + by)

    def step_at(self, point: str, by: timedelta, *clocks: "Clock") -> None:
        """Let its daemon, a mortal one, step these clocks when it passes a point next: right there, and once."""
        plan = {"point": point, "by_ns": _nanoseconds(by), "files": [str(one._file) for one in clocks]}
        fresh = self._steps.with_suffix(".new")
        fresh.write_text(json.dumps(plan))
        fresh.rename(self._steps)

    @property
    def has_stepped(self) -> bool:
        """Whether the point of ``step_at`` was passed."""
        return not self._steps.exists()

    def put_right(self) -> None:
        """Let it tell the machine's time again."""
        self._set(timedelta())

    @property
    def ahead(self) -> timedelta:
        """How far it is ahead of the machine's."""
        return timedelta(microseconds=_NANOSECONDS.unpack(self._mapped[:])[0] // 1000)

    def _set(self, ahead: timedelta) -> None:
        self._mapped[:] = _NANOSECONDS.pack(_nanoseconds(ahead))


def passed(point: str) -> None:
    """Step the clocks that are to be stepped when this daemon passes this point."""
    steps = _steps_beside(Path(os.environ[_FILE])) if _FILE in os.environ else None
    if steps is None or not steps.exists():
        return
    plan = json.loads(steps.read_text())
    if plan["point"] == point:
        for file in plan["files"]:
            mapped = _mapped(Path(file))
            mapped[:] = _NANOSECONDS.pack(_NANOSECONDS.unpack(mapped[:])[0] + plan["by_ns"])
        steps.unlink()


def _steps_beside(file: Path) -> Path:
    return file.with_suffix(".steps")


def _mapped(file: Path) -> mmap.mmap:
    with file.open("r+b") as opened:
        return mmap.mmap(opened.fileno(), _NANOSECONDS.size)


def _nanoseconds(span: timedelta) -> int:
    return span // timedelta(microseconds=1) * 1000
