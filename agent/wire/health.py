"""What a daemon says of itself to whoever asks, without a credential."""

from typing import Literal

from agent.wire.base import Answer
from agent.wire.host import HookState


class AgentHealth(Answer, kw_only=True, frozen=True):
    """The agent lives. What it depends on is reported beside that: an agent without libvirt still answers."""

    status: Literal["ok"]
    version: str
    libvirt_connected: bool
    hook: HookState

    @classmethod
    def example(cls) -> "AgentHealth":
        """Return an example for documentation and tests."""
        return cls(status="ok", version="0.1.0", libvirt_connected=True, hook="ok")
