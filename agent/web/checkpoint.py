"""Named points at which the process could die, hang, fail or lose the network, and a test can make it.

Whoever decides or changes something calls its ``checkpoint`` right before and right after: the agent around each
journal record and each step, the controller around each commit of its database, each step of an operation and each
message to an agent. In production a checkpoint does nothing; there is no branch for tests anywhere.
"""

from collections.abc import Callable

#: Called with the name of the point, from whatever thread the work is on. What it raises, the work fails with.
Checkpoint = Callable[[str], None]


def no_checkpoint(name: str) -> None:
    """Go on: only tests stop the world at a point."""
