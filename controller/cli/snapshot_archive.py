"""``coldframe snapshot export`` and ``import``: a snapshot as one portable file."""

from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from agent.wire.operation import Operation
from agent.wire.snapshot import Snapshot
from controller.cli.client import path
from controller.cli.lookup import snapshot_uuid
from controller.cli.session import Session
from controller.cli.snapshot import Id
from controller.cli.text import printable, size
from controller.cli.waiting import result_id, settle

File = Annotated[Path, typer.Argument(help="The portable file.", metavar="FILE")]


def export(
    session: Session,
    id: Id,
    file: File,
    chain: Annotated[
        bool, typer.Option("--chain", help="Keep each disk's chain of files, instead of one file a disk.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")] = False,
) -> None:
    """Write a snapshot as one portable file: disks, NVRAM, TPM and definition. The VM may run."""
    uuid = str(snapshot_uuid(session.client, id))
    found = session.client.get(path("snapshots", uuid), Snapshot)
    disks = "chain" if chain else "flat"
    written = session.client.save(path("snapshots", uuid, "export"), file, replace=force, disks=disks)
    told = (
        f"Wrote snapshot {printable(found.name)} of {printable(found.vm_name)}, {size(written)}, to {printable(file)}"
    )
    session.show(found, lambda: session.out.print(told))


def import_(  # noqa: PLR0917 - one parameter for each option of the command
    session: Session,
    file: File,
    host: Annotated[str, typer.Option(help="The host that the VM is made on.", metavar="HOST")],
    name: Annotated[str | None, typer.Option(help="Another name for the snapshot.", metavar="NAME")] = None,
    as_new: Annotated[
        str | None, typer.Option(help="Make another VM, of this name, with an identity of its own.", metavar="NAME")
    ] = None,
    directory: Annotated[
        str | None, typer.Option(help="Where its disks go; one of the host's image directories.", metavar="DIR")
    ] = None,
) -> None:
    """Make the VM of a portable file, standing on the snapshot that the file holds."""
    given = {"name": name, "as_new": as_new, "directory": directory}
    query = {key: value for key, value in given.items() if value is not None}
    where = path("snapshots", "import")
    answer = session.client.send(where, file, Operation, str(uuid4()), host=host, **query)

    def show_made(ended: Operation) -> None:
        made = session.client.get(path("snapshots", result_id(ended, "snapshot")), Snapshot)
        session.show(made, lambda: _tell(session, made, host, ended))

    settle(session, answer, show_made)


def _tell(session: Session, made: Snapshot, host: str, ended: Operation) -> None:
    vm = f"{printable(made.vm_name)} ({made.vm})"
    session.out.print(f"VM {vm} is on {printable(host)} and stands on snapshot {printable(made.name)} ({made.uuid})")
    if made.host_files.state != "complete":
        session.out.print(f"Its host files are {made.host_files.state}: {printable(made.host_files.reason)}")
    if left_out := ended.result.get("left_out"):
        session.out.print(f"Disks that the archive does not hold were left out: {' '.join(map(printable, left_out))}")
