"""Who runs an operation: a name by which another controller can tell that the process behind it is dead.

The name is ``boot id/PID namespace/PID/start time/random``, all but the last from ``/proc`` (proc(5)). Only a process
of the same boot and PID namespace can be looked for; of any other, and where ``/proc`` shows less than that
(``subset=pid`` has no boot id, ``hidepid`` no process of another user), only its silence tells.
"""

import os
import secrets
import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
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
    _, start = _state_and_start(_pid())
    return f"{_world() or 'unknown'}/{_pid()}/{start}/{secrets.token_hex(8)}"


def is_dead(owner: str) -> bool:
    """Tell whether the process that an engine was named for has certainly ended. Blocks for microseconds."""
    world, _, rest = owner.rpartition("/")[0].rpartition("/")[0].rpartition("/")
    if not world or world != _world() or not rest.isdigit():
        return False
    try:
        state, start = _state_and_start(rest)
    except OSError:
        return _is_free(int(rest))
    return state in _ENDED or start != owner.split("/")[-2]


def _world() -> str | None:
    """Return the boot and the PID namespace, or None where ``/proc`` does not show them."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return None


def _pid() -> str:
    return str((_PROC / "self").readlink())


def _state_and_start(pid: str) -> tuple[str, str]:
    """Return the state of a process, and when it started, in clock ticks since boot. Raises OSError."""
    fields = (_PROC / pid / "stat").read_text().rpartition(")")[2].split()
    return fields[_STATE], fields[_START]


def _is_free(pid: int) -> bool:
    """Tell whether no process has this number; ``/proc`` alone does not: it may hide those of other users."""
    try:
        with suppress(PermissionError):
            os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
