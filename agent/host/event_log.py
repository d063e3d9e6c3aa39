"""The host's durable event log: JSON lines in segments, read by the controller through a cursor.

``events/<number of its first event>.jsonl`` begins with a header line (the log's id, the first number, the last spool
note before it) and is renamed into place whole; events follow, one line each, fsynced before ``append`` returns. A
process killed in the middle of a line leaves a torn tail, which the next open cuts off: that event was never
acknowledged. Numbers grow by one and are never used twice. Old segments are removed whole.
"""

import asyncio
import itertools
import logging
import os
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec

from agent.host import files
from agent.host.marks import make_directories, storage
from agent.wire.base import utc_now
from agent.wire.event import EventSource, HostEvent, HostEvents

SEGMENT_BYTES = 1 << 20
#: With events of about 250 bytes, eight segments hold some thirty thousand: weeks of a busy host.
SEGMENTS_KEPT = 8
#: Readers that keep up are served from memory; only one that was away longer reads the files.
RECENT = 1024

log = logging.getLogger(__name__)


class _Header(msgspec.Struct, kw_only=True, frozen=True):
    log: UUID
    first: int
    spool: str | None = None


class _Line(HostEvent, kw_only=True, frozen=True):
    """An event as it is stored. ``spool`` is the identity of the hook's note that it was made from."""

    spool: str | None = None


class EventLog:
    """One host's log. Opening reads the newest segment; one process at a time may have it open.

    ``append`` and ``read`` block (an fsync, at worst a segment's parse): call them through ``asyncio.to_thread``. They
    may be called from any thread. Readers never wait for an append: they see what was last acknowledged.
    """

    def __init__(self, state_dir: Path, segment_bytes: int = SEGMENT_BYTES, segments_kept: int = SEGMENTS_KEPT) -> None:
        self._directory = state_dir / "events"
        self._segment_bytes = segment_bytes
        self._segments_kept = segments_kept
        self._appending = threading.Lock()  # held over an fsync
        self._state = threading.Lock()  # held for a moment; taken on the event loop too
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._torn = False
        self._rotating = False  # a segment may be there that begins with the next event: none may go before it
        make_directories(state_dir, "events")
        self._open()

    def _open(self) -> None:
        segments = sorted(path for path in self._directory.glob("*.jsonl") if path.stem.isdigit())
        if not segments:
            segments = [self._new_segment(_Header(log=uuid4(), first=1))]
        data = _read(segments[-1])
        try:
            header = msgspec.json.decode(data[: data.index(b"\n")], type=_Header)
        except ValueError:  # no line at all, or msgspec's errors, which are ValueErrors
            self._set_aside(segments)
            self._open()
            return
        self._adopt(segments, header, data)

    def _set_aside(self, segments: list[Path]) -> None:
        """Begin a new log where the old one's newest segment is damaged: its numbers must not be used again."""
        log.error("the event log's newest segment is damaged; a new log begins", extra={"path": str(segments[-1])})
        for path in segments:
            files.rename(path, path.with_suffix(f".damaged-{uuid4()}"))

    def _adopt(self, segments: list[Path], header: _Header, data: bytes) -> None:
        lines = list(_lines(data))
        self.log = header.log
        self._segments = [int(path.stem) for path in segments]
        self._size = lines[-1][1] if lines else data.index(b"\n") + 1
        self._recent = deque((_event(line) for line, _ in lines), RECENT)
        self._last = lines[-1][0].seq if lines else header.first - 1
        self._spool = next((line.spool for line, _ in reversed(lines) if line.spool is not None), header.spool)
        with storage("opening", segments[-1]):
            self._descriptor = os.open(segments[-1], os.O_RDWR | os.O_CLOEXEC)
        if self._size < len(data):
            log.warning("cut off an event that was never acknowledged", extra={"bytes": len(data) - self._size})
            self._truncate()

    @property
    def last_seq(self) -> int:
        """The number of the newest event, 0 in an empty log."""
        return self._last

    @property
    def last_spool(self) -> str | None:
        """The identity of the newest spool note in the log."""
        return self._spool

    def append(
        self,
        type: str,
        source: EventSource,
        vm: UUID | None = None,
        vm_name: str | None = None,
        data: dict[str, Any] | None = None,
        *,
        spool: str | None = None,
        at: datetime | None = None,
    ) -> HostEvent:
        """Add an event; it is durable once this returns. ``at`` is now unless the event is older than its record.

        Raises StorageFailed, and then the event is not in the log, or at most after a restart.
        """
        with self._appending:
            line = _Line(
                seq=self._last + 1,
                at=at or utc_now(),
                type=type,
                source=source,
                vm=vm,
                vm_name=vm_name,
                data=data or {},
                spool=spool,
            )
            encoded = msgspec.json.encode(line) + b"\n"
            full = self._size + len(encoded) > self._segment_bytes and self._segments[-1] <= self._last
            if full or self._rotating:
                self._rotate()
            self._write(encoded)
            event = _event(line)
            self._publish(event, spool)
        return event

    def _publish(self, event: HostEvent, spool: str | None) -> None:
        with self._state:
            self._last = event.seq
            self._recent.append(event)
            self._spool = spool or self._spool
            waiters = list(self._waiters)
        for loop, woken in waiters:
            loop.call_soon_threadsafe(woken.set)

    def _write(self, encoded: bytes) -> None:
        if self._torn:
            self._truncate()
        self._torn = True
        with storage("appending to", self._path(self._segments[-1])):
            written = 0
            while written < len(encoded):
                written += os.pwrite(self._descriptor, encoded[written:], self._size + written)
            os.fsync(self._descriptor)
        self._torn = False
        with self._state:
            self._size += len(encoded)

    def _truncate(self) -> None:
        with storage("truncating", self._path(self._segments[-1])):
            os.ftruncate(self._descriptor, self._size)
            os.fsync(self._descriptor)
        self._torn = False

    def _rotate(self) -> None:
        if self._torn:
            self._truncate()
        self._rotating = True
        path = self._new_segment(_Header(log=self.log, first=self._last + 1, spool=self._spool))
        with storage("opening", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            os.close(self._descriptor)
            size = os.fstat(descriptor).st_size
        with self._state:
            self._descriptor, self._size = descriptor, size
            self._segments.append(self._last + 1)
            dropped, self._segments = self._segments[: -self._segments_kept], self._segments[-self._segments_kept :]
        self._rotating = False
        for first in dropped:
            with storage("removing", self._path(first)):
                self._path(first).unlink(missing_ok=True)

    def _new_segment(self, header: _Header) -> Path:
        path = self._path(header.first)
        files.write_atomic(path, msgspec.json.encode(header) + b"\n", token="segment")  # noqa: S106 - a file's name
        return path

    def _path(self, first: int) -> Path:
        return self._directory / f"{first:020}.jsonl"

    def read(self, after: int, limit: int = 1000) -> HostEvents:
        """Return up to ``limit`` events above ``after``, oldest first. A cursor from another log is brought back."""
        with self._state:
            last, size, segments, recent = self._last, self._size, list(self._segments), list(self._recent)
        if recent and after + 1 >= recent[0].seq:
            found = [event for event in recent if event.seq > after][:limit]
        else:
            stored = (event for event in self._stored(segments, size, after) if after < event.seq <= last)
            found = list(itertools.islice(stored, limit))
        with self._state:
            oldest = self._segments[0]
        return HostEvents(items=found, next=found[-1].seq if found else min(after, last), log=self.log, oldest=oldest)

    def _stored(self, segments: list[int], size: int, after: int) -> Iterator[HostEvent]:
        begin = max(bisect_right(segments, after + 1) - 1, 0)
        for first in segments[begin:]:
            data = _read(self._path(first))  # empty where it was rotated away meanwhile: ``oldest`` then says so
            data = data[:size] if first == segments[-1] else data
            yield from (_event(line) for line, _ in _lines(data))

    def newest_of(self, types: Collection[str]) -> dict[UUID, str]:
        """Return the type of each VM's newest event of these types, as far back as the log goes. Blocks."""
        with self._state:
            last, size, segments = self._last, self._size, list(self._segments)
        stored = (event for event in self._stored(segments, size, 0) if event.seq <= last)
        return {event.vm: event.type for event in stored if event.vm is not None and event.type in types}

    async def wait(self, after: int, timeout_s: float) -> bool:
        """Return True as soon as the log has an event above ``after``, False after ``timeout_s``."""
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        with self._state:
            if self._last > after:
                return True
            self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter[1].wait()
        except TimeoutError:
            return False
        finally:
            with self._state:
                self._waiters.discard(waiter)
        return True

    def close(self) -> None:
        """Close the newest segment. A later append raises StorageFailed, and never writes to another file."""
        with self._appending:
            os.close(self._descriptor)
            self._descriptor = -1


def _event(line: _Line) -> HostEvent:
    fields = {name: getattr(line, name) for name in HostEvent.__struct_fields__}
    return HostEvent(**fields)


def _read(path: Path) -> bytes:
    with storage("reading", path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""


def _lines(data: bytes) -> Iterator[tuple[_Line, int]]:
    """Yield each whole event after the header, with the offset behind it. Damaged lines are passed over."""
    end = data.find(b"\n") + 1
    while end and (newline := data.find(b"\n", end)) >= 0:
        line, end = data[end:newline], newline + 1
        try:
            yield msgspec.json.decode(line, type=_Line), end
        except msgspec.MsgspecError:
            log.warning("passed over a damaged line of the event log", extra={"offset": end - len(line) - 1})
