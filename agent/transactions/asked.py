"""What a request must not say, whatever the domain is like: refused before a transaction of it exists.

These are no constraints of the wire types, since the journal holds requests too: a rule that came later would make
an older transaction's record unreadable.
"""

from collections import Counter
from collections.abc import Iterable

from agent.web.errors import InvalidRequest
from agent.wire.transaction import (
    DepartRequest,
    PlaceRequest,
    RestoreRequest,
    RevertRequest,
    SnapshotRequest,
    TransactionRequest,
)


def require_sense(request: TransactionRequest) -> None:
    """Raise InvalidRequest where a request names one thing twice, or asks two things of it."""
    if isinstance(request, SnapshotRequest):
        return
    if isinstance(request, RestoreRequest | PlaceRequest):
        _require_once("host_files", [file.type for file in request.host_files])
    if isinstance(request, RestoreRequest | DepartRequest):
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
