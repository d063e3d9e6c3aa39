"""``coldframe operation``: work that is under way or has ended."""

from typing import Annotated
from uuid import UUID

import typer

from agent.wire.operation import Operation, OperationState
from controller.cli.client import path
from controller.cli.session import Session, command
from controller.cli.text import table, when
from controller.cli.waiting import show_operation
from controller.cli.waiting import wait as wait_for

app = typer.Typer(help="Operations.", no_args_is_help=True)

Id = Annotated[UUID, typer.Argument(help="The operation's UUID.", metavar="ID")]


@command(app, "list")
def list_(
    session: Session,
    state: Annotated[OperationState | None, typer.Option(help="Only those in this state.")] = None,
) -> None:
    """List operations, newest first."""
    found = session.client.items(path("operations"), Operation, **({"state": state} if state else {}))
    rows = [(one.uuid, one.kind, one.vm, one.host, one.state, one.step, when(one.created_at)) for one in found]
    headings = ("UUID", "KIND", "VM", "HOST", "STATE", "STEP", "CREATED")
    session.show(found, lambda: table(session.out, headings, rows))


@command(app, "show")
def show(session: Session, id: Id) -> None:
    """Show one operation."""
    show_operation(session, session.client.get(path("operations", str(id)), Operation))


@command(app, "wait")
def wait(session: Session, id: Id) -> None:
    """Wait until an operation ends; fails as the operation fails."""
    show_operation(session, wait_for(session, session.client.get(path("operations", str(id)), Operation)))


@command(app, "cancel")
def cancel(session: Session, id: Id) -> None:
    """Cancel an operation where that is still possible."""
    answer = session.client.change("DELETE", path("operations", str(id)), Operation)
    show_operation(session, answer)
