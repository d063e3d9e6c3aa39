"""``coldframe retention``: which snapshots are kept, and which go by themselves."""

from typing import Annotated
from uuid import uuid4

import typer

from agent.wire.operation import Operation
from agent.wire.retention import RetentionPolicy, RetentionVerdict, SetRetention
from controller.cli.client import path
from controller.cli.errors import FAILED
from controller.cli.session import Session, command
from controller.cli.snapshot import labels_of
from controller.cli.text import facts, printable, table, when
from controller.cli.waiting import settle

app = typer.Typer(help="Retention policies: snapshots that go by themselves.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The policy's name.", metavar="NAME")]
_WORDS = ("last", "hourly", "daily", "weekly", "monthly")


def _count(what: str) -> object:
    return typer.Option(help=f"How many to keep: {what}.", metavar="N", min=0, max=10_000)


@command(app, "set")
def set_(  # noqa: PLR0917 - one parameter for each option of the command
    session: Session,
    name: Name,
    vm: Annotated[str | None, typer.Option(help="Snapshots of this VM.", metavar="VM")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Snapshots with this label; may be repeated.", metavar="KEY=VALUE")
    ] = None,
    keep_last: Annotated[int, _count("the newest")] = 0,
    keep_hourly: Annotated[int, _count("the newest of an hour")] = 0,
    keep_daily: Annotated[int, _count("the newest of a day, in UTC")] = 0,
    keep_weekly: Annotated[int, _count("the newest of a week, from Monday")] = 0,
    keep_monthly: Annotated[int, _count("the newest of a month")] = 0,
    disabled: Annotated[bool, typer.Option("--disabled", help="Only to be previewed, for now.")] = False,
) -> None:
    """Make a policy or replace it as a whole: what it covers and no policy keeps is deleted in the background."""
    body = SetRetention(
        vm=vm,
        labels=labels_of(label or []),
        keep_last=keep_last,
        keep_hourly=keep_hourly,
        keep_daily=keep_daily,
        keep_weekly=keep_weekly,
        keep_monthly=keep_monthly,
        enabled=not disabled,
    )
    made = session.client.put(path("retention-policies", name), RetentionPolicy, body)
    session.show(made, lambda: _tell_set(session, made))


@command(app, "list")
def list_(session: Session) -> None:
    """List the policies."""
    found = session.client.items(path("retention-policies"), RetentionPolicy)
    rows = [(one.name, _covers(one), _keeps(one), "yes" if one.enabled else "no") for one in found]
    session.show(found, lambda: table(session.out, ("NAME", "COVERS", "KEEPS", "ENABLED"), rows))


@command(app, "show")
def show(session: Session, name: Name) -> None:
    """Show one policy."""
    one = session.client.get(path("retention-policies", name), RetentionPolicy)
    rows = [
        ("name", one.name),
        ("covers", _covers(one)),
        ("keeps", _keeps(one)),
        ("enabled", "yes" if one.enabled else "no"),
        ("created", when(one.created_at)),
    ]
    session.show(one, lambda: facts(session.out, rows))


@command(app, "remove")
def remove(session: Session, name: Name) -> None:
    """Remove a policy; the snapshots that it would have deleted stay."""
    gone = session.client.change("DELETE", path("retention-policies", name), RetentionPolicy)
    session.show(gone, lambda: session.out.print(f"Policy {printable(name)} is removed; no snapshot was touched"))


@command(app, "preview")
def preview(session: Session, name: Name) -> None:
    """Say of each snapshot that a policy covers whether it would stay or go, and why."""
    found = session.client.items(path("retention-policies", name, "preview"), RetentionVerdict)
    rows = [
        ("keep" if one.keep else "delete", one.vm_name, one.name, when(one.created_at), one.reason) for one in found
    ]
    session.show(found, lambda: table(session.out, (" ", "VM", "SNAPSHOT", "CREATED", "BECAUSE"), rows))


@command(app, "apply", waits=True)
def apply(session: Session, name: Name) -> None:
    """Delete now what a policy covers and no policy keeps; else it happens within the hour. Exit 1 where one fails."""
    answer = session.client.change("POST", path("retention-policies", name, "apply"), Operation, key=str(uuid4()))

    def tell(ended: Operation) -> None:
        session.show(ended, lambda: _tell_applied(session, ended))
        if ended.result["failed"]:
            raise typer.Exit(FAILED)

    settle(session, answer, tell)


def _tell_set(session: Session, made: RetentionPolicy) -> None:
    word = "is in force" if made.enabled else "is kept, and not in force"
    session.out.print(f"Policy {printable(made.name)} {word}: of {_covers(made)} it keeps {_keeps(made)}")
    session.out.print(f"To see what goes: coldframe retention preview {printable(made.name)}")


def _tell_applied(session: Session, ended: Operation) -> None:
    result = ended.result
    session.out.print(f"{len(result['deleted'])} snapshot(s) were deleted")
    for one in result["waiting"]:
        session.out.print(f"Snapshot {printable(one['snapshot'])} goes when its VM stops")
    for one in result["failed"]:
        session.out.print(f"Snapshot {printable(one['snapshot'])} was not deleted: {printable(one['reason'])}")
    for one in result["skipped"]:
        session.out.print(f"VM {printable(one['vm'])} was left out: {printable(one['reason'])}")


def _covers(one: RetentionPolicy) -> str:
    labels = " ".join(f"{key}={value}" for key, value in sorted(one.labels.items()))
    vm = f"VM {one.vm_name}" if one.vm else "all VMs"
    return printable(f"{vm}, {labels}" if labels else vm)


def _keeps(one: RetentionPolicy) -> str:
    counts = [(word, getattr(one, f"keep_{word}")) for word in _WORDS]
    return ", ".join(f"{count} {word}" for word, count in counts if count)
