"""The hook's notes, worked off into the event log in the order in which they were written, each once.

Each note is in the log before its file goes. The log keeps the identity (number and hash) of the last note, and a
file's removal is durable before the next is looked at, so after a crash at most one file stands for a note that is
already logged, and it is known by that identity. The number alone would not do: the hook's counter may be lost.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

from agent.errors import StorageFailed
from agent.host import files
from agent.host.event_log import EventLog
from agent.host.marks import MARK_LIMIT_BYTES, make_directories, parse_mark, storage
from agent.wire.event import HostEvent

EVENT_TYPES = frozenset({"vm.starting", "vm.started", "vm.stopped", "vm.start-refused"})
#: Listing an empty directory takes microseconds, and asking "is there a note?" rather than "did something change?"
#: cannot miss one. inotify would need a further dependency to be a fifth of a second faster.
POLL_S = 0.2
#: A note is renamed milliseconds after it was begun; one that was seen this long, by a clock that nobody sets, was left
#: by a hook that was killed.
ABANDONED_S = 60.0

_NUMBER = re.compile(r"[0-9]{20}")


class _Note(NamedTuple):
    type: str
    vm: UUID
    name: str
    at: datetime
    data: dict[str, str]


class Spool:
    """The spool directory of one host. One drain at a time."""

    def __init__(
        self, state_dir: Path, poll_s: float = POLL_S, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = state_dir / "spool"
        self._rejected = self._directory / "rejected"
        self._poll_s = poll_s
        self._monotonic = monotonic
        self._begun: dict[tuple[Path, int], float] = {}  # notes not finished, as last written: since when they are seen
        make_directories(state_dir, "spool", "spool/rejected")

    def drain(self, log: EventLog) -> Iterator[HostEvent]:
        """Move every note into ``log``, yielding each event once it is there. Blocks: go through it in a thread.

        What is not a note is set aside in ``spool/rejected`` and reported by an event of the type
        ``spool.rejected``. Raises StorageFailed; the rest then waits for the next drain, in order.
        """
        self._remove_abandoned()
        for path in self._pending():
            yield from self._move(path, log)

    def _pending(self) -> list[Path]:
        with storage("listing", self._directory):
            paths = [path for path in self._directory.iterdir() if not path.name.startswith(".")]
        return sorted(path for path in paths if path != self._rejected)

    def _move(self, path: Path, log: EventLog) -> Iterator[HostEvent]:
        data = _read(path)
        identity = f"{path.name}:{hashlib.sha256(data or b'').hexdigest()[:16]}"
        try:
            note = _parse(path, data)
        except ValueError as err:
            yield from self._reject(path, identity, str(err), log)
            return
        if identity != log.last_spool:
            yield log.append(note.type, "hook", note.vm, note.name, dict(note.data), spool=identity, at=note.at)
        with storage("removing", path):
            path.unlink(missing_ok=True)
        files.fsync_directory(self._directory)

    def _reject(self, path: Path, identity: str, reason: str, log: EventLog) -> Iterator[HostEvent]:
        if identity != log.last_spool:
            facts = {"file": path.name[:255].encode(errors="replace").decode(), "reason": reason}
            yield log.append("spool.rejected", "agent", data=facts, spool=identity)
        with storage("setting aside", path):
            path.rename(self._rejected / str(uuid4()))
        files.fsync_directory(self._directory)

    def _remove_abandoned(self) -> None:
        with storage("listing", self._directory):
            now = self._monotonic()
            seen = [
                (path, written) for path in self._directory.glob(".*.new") if (written := _written(path)) is not None
            ]
            self._begun = {one: self._begun.get(one, now) for one in seen}
            for (path, _), since in self._begun.items():
                if now - since > ABANDONED_S:
                    path.unlink(missing_ok=True)

    async def changed(self, timeout_s: float) -> bool:
        """Return True as soon as there is something to drain, False after ``timeout_s``.

        It stays true until a drain succeeds: a caller whose drain failed waits before it tries again.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not self._pending():
            left = deadline - loop.time()
            if left <= 0:
                return False
            await asyncio.sleep(min(self._poll_s, left))
        return True


def _read(path: Path) -> bytes | None:
    """Return a note's bytes, or None for what is no regular file or too long to be a note."""
    try:
        if not path.is_file() or path.is_symlink() or path.stat().st_size > MARK_LIMIT_BYTES:
            return None
        return path.read_bytes()
    except OSError as err:
        raise StorageFailed(action="reading", path=str(path), reason=err.strerror or str(err)) from err


def _parse(path: Path, data: bytes | None) -> _Note:
    """Return what a note says. Raises ValueError with the reason why it is none."""
    if data is None or not _NUMBER.fullmatch(path.name):
        raise ValueError("not a note: a regular file with a number of 20 digits and at most 64 KiB is expected")
    values = parse_mark(data)
    if values.get("type") not in EVENT_TYPES:
        raise ValueError("its type is not one that the hook writes")
    data_values = {key: values[key] for key in ("reason", "boot_id") if values.get(key)}
    try:
        vm = UUID(values.get("vm", ""))
    except ValueError as err:
        raise ValueError("it names no VM") from err
    return _Note(values["type"], vm, values.get("name", ""), _moment(values.get("at", ""), path), data_values)


def _moment(text: str, path: Path) -> datetime:
    """Return the note's time, or that of its file where ``date`` could not be run or has no nanoseconds."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        with storage("reading", path):
            return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _written(path: Path) -> int | None:
    """Return when a file was last written to, by whatever clock; None for one that is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
