"""``coldframe token``: who may call the controller."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer

from agent.wire.access import CreateToken, NewToken, Role, Token
from agent.wire.operation import Operation
from controller.cli.client import path
from controller.cli.session import Session, command
from controller.cli.text import table, when

app = typer.Typer(help="API tokens.", no_args_is_help=True)


@command(app, "create")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="Who will use it.", metavar="NAME")],
    role: Annotated[Role, typer.Option(help="What it may do.")],
    expires: Annotated[datetime | None, typer.Option(help="When it ends, in UTC; never is the default.")] = None,
) -> None:
    """Make a token; its secret is shown this once."""
    body = CreateToken(name=name, role=role, expires_at=expires.replace(tzinfo=UTC) if expires else None)
    made = session.client.change("POST", path("tokens"), NewToken, body)
    # The secret alone, so that `coldframe token create ... > FILE` makes a token file.
    session.show(made, lambda: None if isinstance(made, Operation) else session.out.print(made.secret))


@command(app, "list")
def list_(session: Session) -> None:
    """List the tokens, without their secrets."""
    found = session.client.items(path("tokens"), Token)
    rows = [
        (one.uuid, one.name, one.role, when(one.created_at), when(one.expires_at), when(one.last_used_at))
        for one in found
    ]
    session.show(found, lambda: table(session.out, ("UUID", "NAME", "ROLE", "CREATED", "EXPIRES", "LAST USED"), rows))


@command(app, "revoke")
def revoke(session: Session, id: Annotated[UUID, typer.Argument(help="The token's UUID.", metavar="ID")]) -> None:
    """Revoke a token; whoever uses it is shut out at once."""
    before = [one for one in session.client.items(path("tokens"), Token) if one.uuid == id]
    session.client.act("DELETE", path("tokens", str(id)))
    session.show(before[0] if before else {}, lambda: session.out.print(f"Token {id} is revoked"))
