"""``coldframe backup``: frozen copies of host files."""

from pathlib import Path
from typing import Annotated
from uuid import UUID, uuid4

import typer

from agent.wire.backup_file import BackupFile, BackupHostFiles
from agent.wire.operation import Operation
from controller.cli.client import path
from controller.cli.session import Session, command
from controller.cli.text import facts, printable, size, table, when
from controller.cli.vm import VmArgument
from controller.cli.waiting import settle

app = typer.Typer(help="Backup files: frozen copies of NVRAM and TPM state.", no_args_is_help=True)

Id = Annotated[UUID, typer.Argument(help="The backup file's UUID.", metavar="ID")]
_HEADINGS = ("UUID", "TYPE", "SIZE", "OWNER", "OWNER'S UUID", "CREATED")


@command(app, "list")
def list_(
    session: Session,
    owner: Annotated[UUID | None, typer.Option(help="Only this owner's.", metavar="UUID")] = None,
) -> None:
    """List backup files."""
    found = session.client.items(path("backup-files"), BackupFile, **({"owner": str(owner)} if owner else {}))
    session.show(found, lambda: _table(session, found))


@command(app, "show")
def show(session: Session, id: Id) -> None:
    """Show one backup file."""
    found = session.client.get(path("backup-files", str(id)), BackupFile)
    rows = [
        ("uuid", found.uuid),
        ("type", found.type),
        ("format", found.format),
        ("size", size(found.size_bytes)),
        ("sha256", found.sha256),
        ("owner", f"{found.owner_kind} {found.owner_uuid}"),
        ("created", when(found.created_at)),
    ]
    session.show(found, lambda: facts(session.out, rows))


@command(app, "export")
def export(
    session: Session,
    id: Id,
    file: Annotated[Path, typer.Argument(help="Where to write it; replaced as a whole.", metavar="FILE")],
) -> None:
    """Write a backup file's bytes to a file: NVRAM as it is, TPM state as a tar archive."""
    found = session.client.get(path("backup-files", str(id)), BackupFile)
    session.client.download(path("backup-files", str(id), "content"), file, found.sha256)
    session.show(found, lambda: session.out.print(f"Wrote {size(found.size_bytes)} to {printable(file)}"))


@command(app, "create", waits=True)
def create(
    session: Session,
    vm: VmArgument,
    owner: Annotated[list[UUID], typer.Option(help="Who owns the copies; may be repeated.", metavar="UUID")],
) -> None:
    """Back a VM's host files up to one or more owners; an owner's older copies are replaced."""
    body = BackupHostFiles(owners=owner)
    answer = session.client.change("POST", path("vms", vm, "backup-host-files"), Operation, body, key=str(uuid4()))

    def show_made(ended: Operation) -> None:
        made = [
            file
            for one in dict.fromkeys(owner)
            for file in session.client.items(path("backup-files"), BackupFile, owner=str(one))
        ]
        session.show(made, lambda: _tell_made(session, made, ended))

    settle(session, answer, show_made)


def _tell_made(session: Session, made: list[BackupFile], ended: Operation) -> None:
    _table(session, made)
    if ended.result.get("source") == "last-sync":
        as_of, reason = ended.result.get("as_of"), ended.result.get("reason")
        session.out.print(f"They are the copies from {printable(as_of)}, when it last stopped: {printable(reason)}")


def _table(session: Session, found: list[BackupFile]) -> None:
    rows = [(f.uuid, f.type, size(f.size_bytes), f.owner_kind, f.owner_uuid, when(f.created_at)) for f in found]
    table(session.out, _HEADINGS, rows)
