"""Findings as people read them, and what they mean for the exit status."""

from collections.abc import Sequence
from typing import Any

import msgspec
import typer

from agent.wire.finding import Finding
from controller.cli.errors import FAILED
from controller.cli.session import Session
from controller.cli.text import printable


def findings_of(result: dict[str, Any], key: str) -> list[Finding]:
    """Return the findings in an operation's result."""
    return msgspec.convert(result.get(key, []), list[Finding])


def report(session: Session, found: Sequence[Finding], well: str) -> None:
    """Print the findings, the worst first, or ``well`` where nothing is wrong; exit 1 where something is."""
    order = {"error": 0, "warning": 1, "info": 2}
    items = sorted(found, key=lambda one: (one.done is not None, order[one.severity]))
    session.show(items, lambda: _print(session, items, well))
    if any(one.is_wrong for one in items):
        raise typer.Exit(FAILED)


def _print(session: Session, items: Sequence[Finding], well: str) -> None:
    for one in items:
        word = "REPAIRED" if one.done else one.severity.upper()
        where = f"{printable(one.host)}: " if one.host else ""
        session.out.print(f"{word}  {one.code}  {where}{printable(one.what)}")
        todo = printable(one.done) if one.done else printable(one.repair)
        session.out.print(f"    {todo}{' [doctor --repair does this]' if one.safe and not one.done else ''}")
    if not any(one.is_wrong for one in items):
        session.out.print(well)
