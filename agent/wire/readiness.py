"""What the controller says of itself to whoever asks, without a credential."""

from typing import Literal

from agent.wire.base import Answer


class ControllerHealth(Answer, kw_only=True, frozen=True):
    """The controller lives: it answers."""

    status: Literal["ok"]
    version: str

    @classmethod
    def example(cls) -> "ControllerHealth":
        """Return an example for documentation and tests."""
        return cls(status="ok", version="0.1.0")


class Readiness(Answer, kw_only=True, frozen=True):
    """Whether the controller can work. Hosts that are away do not count: their VMs wait, others are served."""

    ready: bool
    reason: str | None

    @classmethod
    def example(cls) -> "Readiness":
        """Return an example for documentation and tests."""
        return cls(ready=True, reason=None)
