"""What a daemon believes of its machine and a test changes while it runs, by small libraries that are preloaded.

A library maps a file of a few numbers (64 bits each). The test writes to it, or lets a mortal daemon write to it when
it passes a point.
"""

import json
import mmap
import os
import struct
import subprocess
from datetime import timedelta
from pathlib import Path

_NUMBER = struct.Struct("=q")


class Preloaded:
    """One library and its numbers, for one daemon.

    ``directory`` exists, and is to be found under that name wherever the daemon runs.
    """

    source: str
    numbers: int

    def __init__(self, directory: Path, name: str) -> None:
        stem = Path(self.source).stem
        self.library, self.file = directory / f"{name}-{stem}.so", directory / f"{name}-{stem}"
        compiled(Path(__file__).with_name(self.source), self.library)
        self.file.write_bytes(bytes(self.numbers * _NUMBER.size))
        self._steps = _steps_beside(self.file)
        self.variable = f"LAB_{stem.upper()}"

    def change(self, *numbers: int) -> None:
        """Write the numbers."""
        _write(self.file, numbers)

    def number(self, position: int) -> int:
        """Read one of the numbers."""
        return int(_NUMBER.unpack_from(self.file.read_bytes(), position * _NUMBER.size)[0])

    def change_at(self, point: str, *changes: tuple["Preloaded", tuple[int, ...]]) -> None:
        """Let its daemon, a mortal one, write numbers when it passes a point next: right there, and once."""
        fresh = self._steps.with_suffix(".new")
        fresh.write_text(json.dumps({"point": point, "changes": [(str(of.file), to) for of, to in changes]}))
        fresh.rename(self._steps)

    @property
    def was_passed(self) -> bool:
        """Whether the point of ``change_at`` was passed."""
        return not self._steps.exists()

    def forget(self) -> None:
        """Take back what was to happen at a point."""
        self._steps.unlink(missing_ok=True)


class Clock(Preloaded):
    """How far a daemon's wall clock is from the machine's; its monotonic clock stays."""

    source, numbers = "clock.c", 1

    def step(self, by: timedelta) -> None:
        """Step it."""
        self.change(self.number(0) + _nanoseconds(by))

    def step_at(self, point: str, by: timedelta, *clocks: "Clock") -> None:
        """Step these clocks where its daemon passes a point next."""
        self.change_at(point, *((one, (one.number(0) + _nanoseconds(by),)) for one in clocks))

    def put_right(self) -> None:
        """Let it tell the machine's time again."""
        self.change(0)


class Memory(Preloaded):
    """Which of a daemon's allocations fail: after some that do not, so many."""

    source, numbers = "memory.c", 3

    def fail_at(self, point: str, after: int, count: int) -> None:
        """Let ``count`` allocations fail when its daemon has made ``after`` more since it passed a point."""
        self.change_at(point, (self, (after, count, 0)))

    def suffice(self) -> int:
        """Let none fail any more; return how many did."""
        failed = self.number(2)
        self.forget()
        self.change(0, 0, 0)
        return failed


def compiled(source: Path, library: Path) -> None:
    """Build a library that can be preloaded from its C source."""
    options = ("-shared", "-fPIC", "-O2", "-fno-builtin", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["gcc", *options, "-o", library, source, "-ldl"], check=True)


def environment(*libraries: Preloaded) -> dict[str, str]:
    """Return what is added to the environment of a daemon that is to believe them."""
    if not libraries:
        return {}
    preload = " ".join(str(one.library) for one in libraries)
    return {"LD_PRELOAD": preload} | {one.variable: str(one.file) for one in libraries}


def passed(point: str) -> None:
    """Write what is to be written when this daemon passes this point."""
    for variable in ("LAB_CLOCK", "LAB_MEMORY"):
        steps = _steps_beside(Path(os.environ.get(variable, "/nonexistent")))
        if steps.exists() and (plan := json.loads(steps.read_text()))["point"] == point:
            steps.unlink()
            for file, numbers in plan["changes"]:
                _write(Path(file), numbers)


def _write(file: Path, numbers: tuple[int, ...]) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[: len(numbers) * _NUMBER.size] = b"".join(_NUMBER.pack(one) for one in numbers)


def _steps_beside(file: Path) -> Path:
    return file.with_suffix(".steps")


def _nanoseconds(span: timedelta) -> int:
    return span // timedelta(microseconds=1) * 1000
