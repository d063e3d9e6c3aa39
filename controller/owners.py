"""Who runs an operation: a name by which another controller can tell that the process behind it is dead.

The name is ``boot id/PID namespace/PID/start time/random``, all but the last from ``/proc`` (proc(5)). Only a process
of the same boot and PID namespace can be looked for; of any other only its silence tells.
"""

import secrets
import time
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

_PROC = Path("/proc")
_STATE, _START = 3 - 3, 22 - 3  # fields of /proc/PID/stat, counted from the one behind the command's name
_ENDED = {"Z", "X"}


class Silence:
    """For how long things have shown no change, on this process's own monotonic clock: no date is compared.

    A machine that sleeps stops that clock, so its owner is only waited for longer.
    """

    def __init__(self, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_s, self._clock = lease_s, clock
        self._seen: dict[Hashable, tuple[object, float]] = {}

    def is_over(self, what: Hashable, shows: object) -> bool:
        """Tell whether ``what`` has shown the same for a lease. What is seen for the first time begins one."""
        known, since = self._seen.get(what, (None, 0.0))
        if what not in self._seen or known != shows:
            since = self._clock()
            self._seen[what] = (shows, since)
        return self._clock() - since >= self._lease_s

    def forget_others(self, than: Iterable[Hashable]) -> None:
        """Forget what is not among these."""
        kept = set(than)
        self._seen = {what: seen for what, seen in self._seen.items() if what in kept}


def new() -> str:
    """Name an engine of this process. Blocks for microseconds."""
    return f"{_world()}/{_pid()}/{_start(_pid())}/{secrets.token_hex(8)}"


def is_dead(owner: str) -> bool:
    """Tell whether the process that an engine was named for has certainly ended. Blocks for microseconds."""
    world, _, rest = owner.rpartition("/")[0].rpartition("/")[0].rpartition("/")
    start = owner.split("/")[-2] if world else ""
    return world == _world() and rest.isdigit() and _start(rest) != start


def _world() -> str:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{(_PROC / 'self/ns/pid').readlink()}"


def _pid() -> str:
    return str((_PROC / "self").readlink())


def _start(pid: str) -> str:
    """Return when a process started, in clock ticks since boot; empty for one that has ended."""
    try:
        fields = (_PROC / pid / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[_STATE] in _ENDED else fields[_START]
