"""What every step of a plan is."""

import msgspec


class Step(msgspec.Struct, kw_only=True, frozen=True, tag_field="step"):
    """One thing to do. Every step can be done twice and undone twice with the effect of once."""

    @property
    def name(self) -> str:
        """Say what the step does, for people and for tests that kill the agent at it."""
        raise AssertionError(f"{type(self).__name__} has no name")
