"""Retention: policies say which snapshots are kept; what none of them keeps is deleted."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import msgspec

from agent.wire.base import Answer, Request

#: More snapshots than a chain may have files, so that no sensible wish is refused.
Count = Annotated[int, msgspec.Meta(ge=0, le=10_000)]


class SetRetention(Request, kw_only=True, frozen=True):
    """The body of ``PUT /v1/retention-policies/{name}``: the whole policy; what is not named is its default.

    It covers the snapshots of ``vm`` (a UUID, or a name that is unique), or of all VMs, that carry all ``labels``; one
    of the two must be given, and one of the counts.
    """

    vm: str | None = None
    labels: dict[str, str] = {}
    keep_last: Count = 0
    keep_hourly: Count = 0
    keep_daily: Count = 0
    keep_weekly: Count = 0
    keep_monthly: Count = 0
    enabled: bool = True

    @classmethod
    def example(cls) -> "SetRetention":
        """Return an example for documentation and tests."""
        return cls(vm="win11", keep_last=3, keep_daily=7, keep_weekly=4)


class RetentionPolicy(Answer, kw_only=True, frozen=True):
    """One policy. Of each VM it keeps the newest snapshots, and the newest of each of so many hours, days and so on."""

    name: str
    vm: UUID | None
    vm_name: str | None
    labels: dict[str, str]
    keep_last: int
    keep_hourly: int
    keep_daily: int
    keep_weekly: int
    keep_monthly: int
    enabled: bool
    created_at: datetime

    @classmethod
    def example(cls) -> "RetentionPolicy":
        """Return an example for documentation and tests."""
        return cls(
            name="nightly",
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            vm_name="win11",
            labels={},
            keep_last=3,
            keep_hourly=0,
            keep_daily=7,
            keep_weekly=4,
            keep_monthly=0,
            enabled=True,
            created_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
        )


class RetentionVerdict(Answer, kw_only=True, frozen=True):
    """What becomes of one snapshot, and why. ``operation`` is its deletion, where that was asked for and goes on."""

    snapshot: UUID
    name: str
    vm: UUID
    vm_name: str
    created_at: datetime
    keep: bool
    reason: str
    operation: UUID | None = None

    @classmethod
    def example(cls) -> "RetentionVerdict":
        """Return an example for documentation and tests."""
        return cls(
            snapshot=UUID("b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"),
            name="2026-11-02T09:30:00Z",
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            vm_name="win11",
            created_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
            keep=True,
            reason="policy nightly: last 1 of 3, day 1 of 7 (2026-11-02)",
        )
