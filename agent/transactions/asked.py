"""What requests are, and what one must not say whatever the domain is like: refused before a transaction exists.

These are no constraints of the wire types, since the journal holds requests too: a rule that came later would make
an older transaction's record unreadable.
"""

from collections import Counter
from collections.abc import Iterable
from uuid import UUID

import msgspec

from agent.transactions.journal import AnyRequest
from agent.web.errors import InvalidRequest
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
    TransactionKind,
    TransactionRequest,
)

#: What each request is called on the wire.
KINDS: dict[type[AnyRequest], TransactionKind] = {
    SnapshotRequest: "snapshot",
    RevertRequest: "revert",
    DeleteRequest: "delete",
    CloneRequest: "clone",
    RestoreRequest: "restore",
    ExportRequest: "export",
    ImportRequest: "import",
    PlaceRequest: "place",
    DepartRequest: "depart",
}


def is_same(one: AnyRequest, other: AnyRequest) -> bool:
    """Tell whether two requests ask for the same work; a controller that was set up anew may ask for another lease."""
    return type(one) is type(other) and msgspec.structs.replace(one, lease_s=other.lease_s) == other


def require_sense(request: TransactionRequest) -> None:
    """Raise InvalidRequest where a request names one thing twice, or asks two things of it."""
    if isinstance(request, SnapshotRequest):
        return
    if isinstance(request, ImportRequest):
        _require_once("images", [f"{image.target}.{image.position}" for image in request.images])
    if isinstance(request, ImportRequest | RestoreRequest | PlaceRequest):
        _require_once("host_files", [file.type for file in request.host_files])
    if isinstance(request, ImportRequest | RestoreRequest | DepartRequest):
        return
    _require_once("volumes", [volume.target for volume in request.volumes])
    _require_once("volumes", [volume.path for volume in request.volumes])
    if isinstance(request, RevertRequest):
        _require_once("host_files", [file.type for file in request.host_files])
        _require_apart("remove", request.remove, "host_files", [file.type for file in request.host_files])
        _require_apart("excluded", request.excluded, "volumes", [volume.target for volume in request.volumes])


def _require_once(where: str, names: Iterable[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InvalidRequest(where=f"body.{where}", reason=f"{twice[0]} is there twice")


def _require_apart(where: str, names: Iterable[str], other: str, others: Iterable[str]) -> None:
    both = sorted(set(names) & set(others))
    if both:
        raise InvalidRequest(where=f"body.{where}", reason=f"{both[0]} is in {other} too")


def clash(one: AnyRequest, other: AnyRequest) -> bool:
    """Tell whether two transactions touch one domain. A clone only reads its source, but that must not be merged."""
    return one.vm in _touched(other) or other.vm in _touched(one)


def _touched(request: AnyRequest) -> set[UUID]:
    return {request.vm, request.source} if isinstance(request, CloneRequest) else {request.vm}
