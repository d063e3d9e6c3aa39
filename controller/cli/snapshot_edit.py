"""``coldframe snapshot edit``, ``protect`` and ``unprotect``: what a person says of a snapshot."""

from typing import Annotated

import typer

from agent.wire.snapshot import EditSnapshot, Snapshot
from controller.cli.client import path
from controller.cli.lookup import snapshot_uuid
from controller.cli.session import Session
from controller.cli.snapshot import Id, labels_of
from controller.cli.text import printable


def edit(  # noqa: PLR0917 - one parameter for each option of the command
    session: Session,
    id: Id,
    name: Annotated[str | None, typer.Option(help="A new name.", metavar="NAME")] = None,
    description: Annotated[str | None, typer.Option(help="A new description.", metavar="TEXT")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Set a label, keep the others; may be repeated.", metavar="KEY=VALUE")
    ] = None,
    remove_label: Annotated[
        list[str] | None, typer.Option(help="Take a label off; may be repeated.", metavar="KEY")
    ] = None,
) -> None:
    """Rename a snapshot, describe or label it anew."""
    if name is None and description is None and not label and not remove_label:
        raise typer.BadParameter("give --name, --description, --label or --remove-label")
    added, removed = labels_of(label or []), set(remove_label or [])

    def change(now: Snapshot) -> EditSnapshot:
        kept = {key: value for key, value in {**now.labels, **added}.items() if key not in removed}
        return EditSnapshot(name=name, description=description, labels=kept if added or removed else None)

    after = session.client.edit(path("snapshots", str(snapshot_uuid(session.client, id))), Snapshot, change)
    session.show(after, lambda: session.out.print(f"Snapshot {printable(after.name)} ({after.uuid}) is changed"))


def protect(session: Session, id: Id) -> None:
    """Keep a snapshot from being deleted or ungrouped."""
    _protected(session, id, on=True)


def unprotect(session: Session, id: Id) -> None:
    """Take the protection of a snapshot off."""
    _protected(session, id, on=False)


def _protected(session: Session, id: str, *, on: bool) -> None:
    where = path("snapshots", str(snapshot_uuid(session.client, id)))
    after = session.client.edit(where, Snapshot, lambda _now: EditSnapshot(protected=on))
    words = "is protected" if on else "is no longer protected"
    session.show(after, lambda: session.out.print(f"Snapshot {printable(after.name)} ({after.uuid}) {words}"))
