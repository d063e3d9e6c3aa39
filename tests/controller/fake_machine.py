"""What a fake host is made of: image files, domains, transactions, and how it refuses."""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

import msgspec
from aiohttp import web

from agent.wire.base import utc_now
from agent.wire.host_file import FORMATS, HostFile, HostFileType
from agent.wire.problem import Problem
from agent.wire.transaction import (
    CloneRequest,
    DeleteRequest,
    DepartRequest,
    ExportRequest,
    ImportRequest,
    PlaceRequest,
    RestoreRequest,
    RevertRequest,
    SnapshotRequest,
    Transaction,
    TransactionRequest,
)
from agent.wire.vm import Guard, VmState

SIZE = 1 << 30


class Refusal(Exception):
    """Answered as a Problem."""

    def __init__(self, status: int, code: str, **facts: Any) -> None:
        self.problem = Problem(title=code, status=status, code=code, detail=f"{code}; nothing was touched", facts=facts)
        super().__init__(code)


@dataclass
class FakeFile:
    """One image file: what it stands on and how often it was written."""

    backing: str | None
    version: int = 0


@dataclass
class FakeVm:
    """One domain: its tops by target, its host files, and types that cannot be read."""

    uuid: UUID
    name: str
    tops: dict[str, str]
    host_files: dict[HostFileType, bytes]
    expected: list[HostFileType]
    state: VmState = "shut-off"
    broken: dict[HostFileType, str] = field(default_factory=dict)
    guard: Guard | None = None


@dataclass
class Running:
    """A transaction with what the answer does not carry."""

    request: TransactionRequest
    view: Transaction
    captured: dict[HostFileType, bytes] = field(default_factory=dict)
    uploaded: dict[HostFileType, bytes] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)


def digest(data: bytes) -> str:
    """Return the SHA-256 as the wire carries it."""
    return hashlib.sha256(data).hexdigest()


Kind = Literal["snapshot", "revert", "delete", "clone", "restore", "place", "depart", "export", "import"]
KINDS: dict[type, Kind] = {
    SnapshotRequest: "snapshot",
    RevertRequest: "revert",
    DeleteRequest: "delete",
    RestoreRequest: "restore",
    PlaceRequest: "place",
    DepartRequest: "depart",
    CloneRequest: "clone",
    ExportRequest: "export",
    ImportRequest: "import",
}


def answer(body: Any) -> web.Response:
    """Return a JSON answer."""
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def host_file(kind: HostFileType, data: bytes) -> HostFile:
    """Describe bytes as the agent does."""
    return HostFile(
        type=kind,
        path=f"/host/{kind}",
        format=FORMATS[kind],
        size_bytes=len(data),
        sha256=digest(data),
        mtime=utc_now(),
    )
