"""The journal: one append-only file a transaction, which alone decides between undo and redo after a crash.

Each line is one JSON record, fsynced before the work that it announces begins::

    begin     the request                    nothing else on disk yet but, perhaps, the guard
    plan      the steps                      staging may have begun           → undo
    prepared  the transaction as answered    all is staged                    → undo
    commit                                   the switch may have begun        → redo
    rollback  why                            a step of the switch failed      → undo
    ended     the outcome                    nothing left to do but what it says

A torn last line was never acted upon and is dropped.
"""

import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

import msgspec

from agent.errors import StorageFailed
from agent.host import files
from agent.transactions.model import Plan
from agent.wire.problem import Problem
from agent.wire.transaction import Transaction, TransactionRequest

log = logging.getLogger(__name__)

#: Whoever asks how a transaction ended asks for one of the last; these files are a few KiB each.
_ALWAYS_KEPT = 100


#: What a journal holds is what the wire brings.
AnyRequest = TransactionRequest


class Begin(msgspec.Struct, kw_only=True, frozen=True, tag_field="record", tag="begin"):
    """The request, and the transaction as it stood before any work."""

    request: AnyRequest
    transaction: Transaction


class Planned(msgspec.Struct, kw_only=True, frozen=True, tag_field="record", tag="plan"):
    """The steps, written before the first of them is done."""

    plan: Plan


class Prepared(msgspec.Struct, kw_only=True, frozen=True, tag_field="record", tag="prepared"):
    """All is staged."""

    transaction: Transaction


class Commit(msgspec.Struct, kw_only=True, frozen=True, tag_field="record", tag="commit"):
    """From here on the transaction is redone, not undone."""


class Rollback(msgspec.Struct, kw_only=True, frozen=True, tag_field="record", tag="rollback"):
    """From here on the transaction is undone."""

    error: Problem


class Ended(msgspec.Struct, kw_only=True, frozen=True, tag_field="record", tag="ended"):
    """Nothing is left to do but, where ``unclean``, to remove files that could not be removed; then comes another."""

    transaction: Transaction
    unclean: bool = False


Record = Begin | Planned | Prepared | Commit | Rollback | Ended
_decode = msgspec.json.Decoder(Record).decode
_encode = msgspec.json.Encoder(enc_hook=str).encode  # facts of a Problem may be paths


@dataclass(frozen=True)
class Entry:
    """What one journal file says of its transaction."""

    request: AnyRequest
    transaction: Transaction
    plan: Plan = field(default_factory=Plan)
    commit: bool = False
    rollback: Problem | None = None
    ended: bool = False
    unclean: bool = False


class Journal:
    """All journal files of one agent, in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def append(self, transaction: UUID, record: Record) -> None:
        """Write one record and make it durable; the file's directory too when the file is new.

        Raises StorageFailed; then nothing counts as written and the caller must not go on. What a failed write
        left behind is cut off, so that a later record (the undo's own) is not glued to it.
        """
        path = self._path(transaction)
        try:
            new = not path.exists()
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _append(descriptor, _encode(record) + b"\n")
            finally:
                os.close(descriptor)
        except OSError as err:
            raise StorageFailed(action="write the journal", path=str(path), reason=err.strerror) from err
        if new:
            files.fsync_directory(self._directory)

    def entries(self) -> Iterator[Entry]:
        """Read every transaction back, oldest first."""
        read = [self._read(path) for path in self._directory.glob("*.jsonl")]
        yield from sorted((entry for entry in read if entry), key=lambda entry: entry.transaction.started_at)

    def prune(self, older_than_s: float, but: Collection[UUID] = ()) -> list[UUID]:
        """Forget the outcomes of transactions that ended long ago: long before now, and before the newest record.

        A clock that is years ahead alone makes nothing old; the last ``_ALWAYS_KEPT`` outcomes are never forgotten, nor
        those in ``but``, which somebody may be at work on. Returns those that were forgotten.
        """
        changed = sorted((path.stat().st_mtime, path) for path in self._directory.glob("*.jsonl"))
        newest = changed[-1][0] if changed else 0.0
        at_work, forgotten = {self._path(one) for one in but}, list[UUID]()
        for at, path in changed[:-_ALWAYS_KEPT]:
            if at >= min(time.time(), newest) - older_than_s or path in at_work:
                continue
            entry = self._read(path)  # which sets a damaged file aside, under another name
            if entry is None or entry.ended:
                path.unlink(missing_ok=True)
                forgotten += [] if entry is None else [entry.transaction.id]
        return forgotten

    def _path(self, transaction: UUID) -> Path:
        return self._directory / f"{transaction}.jsonl"

    def _read(self, path: Path) -> Entry | None:
        """Fold a file's records and cut off a torn end; None for a file whose first record was never whole.

        A file that cannot be understood is set aside by name and reported: its guard stays, so its domain does not
        start, and every other domain is served.
        """
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        entry: Entry | None = None
        try:
            for line in whole.splitlines():
                entry = _fold(entry, _decode(line))
        except (msgspec.DecodeError, ValueError) as err:
            path.rename(path.with_suffix(".damaged"))
            log.warning("journal-damaged file=%s reason=%s", path.name, err)
            return None
        return entry


def _append(descriptor: int, line: bytes) -> None:
    length = os.fstat(descriptor).st_size
    try:
        view = memoryview(line)
        while view:  # a short write is followed by the error that explains it
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, length)
        raise


def _fold(entry: Entry | None, record: Record) -> Entry:
    if isinstance(record, Begin):
        return Entry(request=record.request, transaction=record.transaction)
    if entry is None:
        raise ValueError("it does not start with its request")
    match record:
        case Planned():
            return replace(entry, plan=record.plan)
        case Prepared():
            return replace(entry, transaction=record.transaction)
        case Commit():
            return replace(entry, commit=True)
        case Rollback():
            return replace(entry, rollback=record.error)
        case Ended():
            return replace(entry, transaction=record.transaction, ended=True, unclean=record.unclean)
