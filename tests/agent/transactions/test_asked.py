"""Requests that contradict themselves."""

from uuid import uuid4

import msgspec
import pytest

from agent.transactions.asked import require_sense
from agent.web.errors import InvalidRequest
from agent.wire.transaction import DeleteRequest, DoomedVolume, RevertRequest, SnapshotRequest

REVERT = RevertRequest.example()


def changed(**changes: object) -> RevertRequest:
    return msgspec.structs.replace(REVERT, **changes)


@pytest.mark.parametrize(
    ("request_", "where"),
    [
        (changed(volumes=REVERT.volumes * 2), "body.volumes"),
        (changed(volumes=[*REVERT.volumes, msgspec.structs.replace(REVERT.volumes[0], target="vdb")]), "body.volumes"),
        (changed(host_files=REVERT.host_files * 2), "body.host_files"),
        (changed(remove=["nvram"]), "body.remove"),
        (changed(excluded=["vda"]), "body.excluded"),
        (DeleteRequest(vm=uuid4(), snapshot=uuid4(), volumes=[DoomedVolume(target="vda", path="/f")] * 2), "body.vol"),
    ],
)
def test_one_thing_asked_for_twice_is_refused(request_: RevertRequest, where: str) -> None:
    with pytest.raises(InvalidRequest, match=where):
        require_sense(request_)


def test_examples_make_sense() -> None:
    for kind in (SnapshotRequest, RevertRequest, DeleteRequest):
        require_sense(kind.example())
