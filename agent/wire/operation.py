"""Operations: the controller's unit of work, what a caller waits for."""

from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from agent.wire.base import Answer
from agent.wire.problem import Problem

OperationState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
#: The step of a queued operation that is worked off when its VM stops, and holds up no other until then.
WAITS_FOR_STOP = "waiting for the VM to stop"
OPERATION_ENDED: frozenset[OperationState] = frozenset({"succeeded", "failed", "cancelled"})


class Progress(Answer, kw_only=True, frozen=True):
    """How far an operation is. ``percent`` is null while ``total_bytes`` is not known."""

    done_bytes: int = 0
    total_bytes: int = 0
    percent: int | None = None


class Operation(Answer, kw_only=True, frozen=True):
    """One piece of work.

    ``snapshot`` is the one that was named when it was asked for. ``result`` names what it made or changed, for
    example ``{"snapshot": uuid}``.
    """

    uuid: UUID
    kind: str
    vm: UUID | None
    host: str | None
    snapshot: UUID | None = None
    state: OperationState
    step: str
    progress: Progress
    error: Problem | None
    result: dict[str, Any]
    created_at: datetime
    ended_at: datetime | None

    @property
    def is_parked(self) -> bool:
        """Whether it waits for its VM to stop."""
        return self.state == "queued" and self.step == WAITS_FOR_STOP

    @classmethod
    def example(cls) -> "Operation":
        """Return an example for documentation and tests."""
        return cls(
            uuid=UUID("77a0f0f8-9f43-4d7f-9df3-0a6f0b7d6c01"),
            kind="snapshot-create",
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            host="kvm1",
            state="succeeded",
            step="done",
            progress=Progress(done_bytes=546_816, total_bytes=546_816, percent=100),
            error=None,
            result={"snapshot": "b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"},
            created_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
            ended_at=datetime(2026, 11, 2, 9, 30, 1, tzinfo=UTC),
        )
