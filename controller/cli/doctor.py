"""``coldframe doctor``: what is wrong across the fleet."""

from typing import Annotated
from uuid import uuid4

import typer

from agent.wire.finding import Finding
from agent.wire.operation import Operation
from controller.cli.client import path
from controller.cli.findings import findings_of, report
from controller.cli.session import Session
from controller.cli.waiting import settle

WELL = "Nothing is wrong"


def doctor(
    session: Session,
    repair: Annotated[bool, typer.Option("--repair", help="Do the repairs that lose nothing, and say which.")] = False,
) -> None:
    """Say what is wrong with hosts, VMs, snapshots and records, and how to mend it. Exit 1 where something is."""
    if not repair:
        report(session, session.client.items(path("doctor"), Finding), WELL)
        return
    answer = session.client.change("POST", path("doctor", "repair"), Operation, key=str(uuid4()))
    settle(session, answer, lambda ended: report(session, findings_of(ended.result, "items"), WELL))
