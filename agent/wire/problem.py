"""Errors as RFC 9457 ``application/problem+json``."""

from typing import Any

from agent.wire.base import Answer


class Problem(Answer, kw_only=True, frozen=True):
    """An error as it crosses the wire.

    ``code`` is stable and documented; ``facts`` are the values that the code names (RFC 9457's extension members,
    kept in one object so that a client need not guess which member is which).
    """

    title: str
    status: int
    code: str
    detail: str
    type: str = "about:blank"
    facts: dict[str, Any] = {}

    @classmethod
    def example(cls) -> "Problem":
        """Return an example for documentation and tests."""
        return cls(
            title="The work needs the domain to be shut off.",
            status=409,
            code="domain-running",
            detail="Domain win11 is running; nothing was touched. Shut it down first: virsh shutdown win11",
            type="/docs#domain-running",
            facts={"name": "win11"},
        )
