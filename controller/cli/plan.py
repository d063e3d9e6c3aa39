"""A plan as people read it."""

from rich.console import Console

from agent.wire.plan import Plan
from controller.cli.text import printable, size, table

_WOULD = {
    "succeed": "This would be done; nothing was changed:",
    "wait": "This would be accepted, and done when the VM stops; nothing was changed:",
    "be-refused": "This would be refused; nothing was changed:",
}


def print_plan(out: Console, plan: Plan) -> None:
    """Say what would become of it, why not, and the steps with the file that each is about."""
    out.print(_WOULD[plan.would])
    for one in plan.refusals:
        out.print(f"{one.code}: {printable(one.detail)}")
    if plan.steps:
        table(out, ("STEP", "FILE"), [(one.name, one.path) for one in plan.steps])
    if plan.bytes_to_move:
        out.print(f"At most {size(plan.bytes_to_move)} would be copied between image files")
    for note in plan.notes:
        out.print(f"Note: {printable(note)}")
