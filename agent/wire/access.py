"""Who may do what, and who did what: tokens, the audit log and the controller's own events."""

from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from agent.wire.base import Answer, Request

Role = Literal["admin", "operator", "reader"]


class Token(Answer, kw_only=True, frozen=True):
    """One API token, without its secret."""

    uuid: UUID
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None

    @classmethod
    def example(cls) -> "Token":
        """Return an example for documentation and tests."""
        return cls(
            uuid=UUID("a2b7f0a0-51f4-4c64-8f63-9a0b4f4f2e01"),
            name="ansible",
            role="operator",
            created_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
            expires_at=datetime(2027, 11, 2, 9, 30, tzinfo=UTC),
            last_used_at=None,
        )


class NewToken(Answer, kw_only=True, frozen=True):
    """A token just made. ``secret`` is shown this once and is not stored."""

    token: Token
    secret: str

    @classmethod
    def example(cls) -> "NewToken":
        """Return an example for documentation and tests."""
        return cls(token=Token.example(), secret="cf_the-secret-that-is-shown-once")  # noqa: S106 - an example


class CreateToken(Request, kw_only=True, frozen=True):
    """The body of ``POST /v1/tokens``. Without ``expires_at`` the token does not expire."""

    name: str
    role: Role
    expires_at: datetime | None = None

    @classmethod
    def example(cls) -> "CreateToken":
        """Return an example for documentation and tests."""
        return cls(name="ansible", role="operator")


class AuditEntry(Answer, kw_only=True, frozen=True):
    """One changing call: who, what, from where and how it ended (the HTTP status; the operation, if one began)."""

    seq: int
    at: datetime
    actor: str
    role: Role
    remote: str
    method: str
    path: str
    status: int
    operation: UUID | None

    @classmethod
    def example(cls) -> "AuditEntry":
        """Return an example for documentation and tests."""
        return cls(
            seq=7,
            at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
            actor="ansible",
            role="operator",
            remote="192.0.2.9",
            method="POST",
            path="/v1/vms/win11/snapshots",
            status=202,
            operation=UUID("77a0f0f8-9f43-4d7f-9df3-0a6f0b7d6c01"),
        )


class Event(Answer, kw_only=True, frozen=True):
    """One line of the controller's event log, as sent by ``GET /v1/events`` (``id:`` is ``seq``)."""

    seq: int
    at: datetime
    type: str
    host: str | None
    vm: UUID | None
    data: dict[str, Any]

    @classmethod
    def example(cls) -> "Event":
        """Return an example for documentation and tests."""
        return cls(
            seq=12,
            at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
            type="snapshot.ready",
            host="kvm1",
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            data={"snapshot": "b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"},
        )
