"""What verification and ``doctor`` find."""

from typing import Literal
from uuid import UUID

from agent.wire.base import Answer

Severity = Literal["error", "warning", "info"]


class Finding(Answer, kw_only=True, frozen=True):
    """One thing that is not as it should be, and how to mend it.

    ``error``: something cannot be used, or is in danger; ``warning``: it should be seen to; ``info``: good to know,
    and nothing is wrong. ``repair`` says what to do; where ``safe`` is true ``doctor --repair`` does it, and ``done``
    then says what was done. ``code`` is stable; the other fields say what it is about, where that is one thing.
    """

    code: str
    severity: Severity
    what: str
    repair: str
    safe: bool = False
    host: str | None = None
    vm: UUID | None = None
    snapshot: UUID | None = None
    path: str | None = None
    done: str | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether this is left to be seen to."""
        return self.severity != "info" and self.done is None

    @classmethod
    def example(cls) -> "Finding":
        """Return an example for documentation and tests."""
        path = "/var/lib/libvirt/images/win11.qcow2"
        return cls(
            code="frozen-file-altered",
            severity="error",
            what=f"{path}, frozen for disk vda of snapshot before-update, was written to afterwards",
            repair="Put the file back from a copy that was made before, with its times: cp -p",
            host="kvm1",
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            snapshot=UUID("b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"),
            path=path,
        )
