"""Clones: new VMs made of a snapshot."""

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from agent.wire.base import Answer, Request

#: ``linked``: overlays on the snapshot's frozen files. ``full``: copies that stand on nothing.
CloneMode = Literal["linked", "full"]
#: ``reset``: a new TPM at the clone's first start. ``copy``: the snapshot's TPM, keys and indices included.
TpmChoice = Literal["reset", "copy"]


class CloneSnapshot(Request, kw_only=True, frozen=True):
    """The body of ``POST /v1/snapshots/{id}/clone``, and of ``POST /v1/vms/{vm}/clone``: one new VM for each name.

    ``uuids``, where given, are the new VMs' own, one for each name in the same order.
    """

    names: list[str]
    mode: CloneMode = "linked"
    tpm: TpmChoice = "reset"
    uuids: list[UUID] = []

    @classmethod
    def example(cls) -> "CloneSnapshot":
        """Return an example for documentation and tests."""
        return cls(names=["win11-a", "win11-b"])


class CloneOrigin(Answer, kw_only=True, frozen=True):
    """What a VM was cloned from, and how. The snapshot, and the VM that it was of, may be gone since.

    ``started``: it has been started since, so its firmware state is its own.
    """

    vm: UUID
    snapshot: UUID
    mode: CloneMode
    tpm: TpmChoice
    started: bool
    created_at: datetime

    @classmethod
    def example(cls) -> "CloneOrigin":
        """Return an example for documentation and tests."""
        return cls(
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            snapshot=UUID("b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"),
            mode="linked",
            tpm="reset",
            started=False,
            created_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
        )
