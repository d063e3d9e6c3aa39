"""Moving a VM to another host."""

from agent.wire.base import Request


class PlaceVm(Request, kw_only=True, frozen=True):
    """The body of ``POST /v1/vms/{vm}/place``.

    ``force``: where its present host cannot be reached, use copies of host files that may be older than the VM.
    """

    host: str
    force: bool = False

    @classmethod
    def example(cls) -> "PlaceVm":
        """Return an example for documentation and tests."""
        return cls(host="kvm2")
