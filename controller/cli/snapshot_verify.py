"""``coldframe snapshot verify``: whether snapshots are still what they were."""

from typing import Annotated
from uuid import uuid4

import typer

from agent.wire.operation import Operation
from controller.cli.client import path
from controller.cli.findings import findings_of, report
from controller.cli.lookup import snapshot_uuid
from controller.cli.session import Session
from controller.cli.waiting import settle


def verify(
    session: Session,
    id: Annotated[str | None, typer.Argument(help="UUID, the beginning of it, or VM/NAME.", metavar="ID")] = None,
    vm: Annotated[str | None, typer.Option(help="All snapshots of this VM.", metavar="VM")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All snapshots of all VMs.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Read images' headers only; no qemu-img check.")] = False,
) -> None:
    """Verify a snapshot, or all of a VM, or all: frozen files, chains, stored host files. Exit 1 where any is bad."""
    if sum((id is not None, vm is not None, everything)) != 1:
        raise typer.BadParameter("give one of: ID, --vm VM, --all")
    if id is not None:
        where = path("snapshots", str(snapshot_uuid(session.client, id)), "verify")
    else:
        where = path("verify") if vm is None else path("vms", vm, "verify")
    query = "?deep=false" if quick else ""
    answer = session.client.change("POST", where + query, Operation, key=str(uuid4()))
    settle(session, answer, lambda ended: _tell(session, ended))


def _tell(session: Session, ended: Operation) -> None:
    counts = ended.result
    well = f"{counts['snapshots']} snapshot(s) with {counts['volumes']} frozen file(s) are as they were taken"
    report(session, findings_of(counts, "findings"), well)
