"""What a changing call would do: the answer to ``?dry_run=true``."""

from typing import Any, Literal
from uuid import UUID

from agent.wire.base import Answer
from agent.wire.problem import Problem

Would = Literal["succeed", "wait", "be-refused"]


class PlannedStep(Answer, kw_only=True, frozen=True):
    """One thing that would be done.

    ``action`` is stable: on a host the kind of the step (``create-overlay``, ``rebase-child``, …), in the records
    ``add``, ``change`` or ``remove``. ``name`` says it for people, ``path`` is the file that it is about, and
    ``facts`` are the step's own: of a step on a host all that its journal would hold.
    """

    action: str
    name: str
    path: str | None = None
    facts: dict[str, Any] = {}


class Plan(Answer, kw_only=True, frozen=True):
    """What a call would do if it were made now without ``dry_run``. Nothing was changed to find out.

    ``kind`` is that of the operation or transaction, and of other calls the route. ``would`` is ``be-refused``
    exactly where ``refusals`` says why; ``wait`` where the work would be accepted and wait for its VM to stop.
    ``bytes_to_move`` is what would be copied between image files at most. ``notes`` say what else is worth knowing.
    The files that work makes carry an id of its own, so their names are others when it is done.
    """

    kind: str
    would: Would
    vm: UUID | None = None
    host: str | None = None
    steps: list[PlannedStep] = []
    refusals: list[Problem] = []
    bytes_to_move: int = 0
    notes: list[str] = []

    @classmethod
    def example(cls) -> "Plan":
        """Return an example for documentation and tests."""
        images = "/var/lib/libvirt/images"
        facts = {
            "target": "vda",
            "frozen": f"{images}/win11.cf-0f7c2c54.vda.qcow2",
            "child": f"{images}/win11.cf-6ad2a0f3.vda.qcow2",
            "allocated_bytes": 196_624,
        }
        step = PlannedStep(action="rebase-child", name="rebase vda", path=str(facts["child"]), facts=facts)
        return cls(
            kind="snapshot-delete",
            would="succeed",
            vm=UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"),
            host="kvm1",
            steps=[step, PlannedStep(action="remove", name="remove 2 backup files", facts={"rows": 2})],
            bytes_to_move=196_624,
        )


def planned(kind: str, steps: list[PlannedStep], refusals: list[Problem], **more: Any) -> Plan:
    """Make a plan; what is refused decides what would become of it."""
    return Plan(kind=kind, would="be-refused" if refusals else "succeed", steps=steps, refusals=refusals, **more)
