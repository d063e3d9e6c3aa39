"""``coldframe events``: what happened, and what happens."""

import sys
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
import typer

from agent.wire.access import Event
from controller.cli.client import path
from controller.cli.session import Session
from controller.cli.text import printable, table, when

_HEADINGS = ("SEQ", "AT", "TYPE", "HOST", "VM", "DATA")


def events(
    session: Session,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until interrupted.")] = False,
    after: Annotated[int, typer.Option(help="Begin after this number.", metavar="SEQ", min=0)] = 0,
) -> None:
    """List events, oldest first; with --follow print them as they happen (with --json one document on each line)."""
    if follow:
        _follow(session, after)
        return
    found = list(parse(session.client.lines(path("events"), after=after, follow="false")))
    session.show(found, lambda: table(session.out, _HEADINGS, map(_row, found)))


def parse(lines: Iterable[str]) -> Iterator[Event]:
    """Read the ``data:`` lines of a stream of server-sent events; one event is one line of JSON."""
    for line in lines:
        if line.startswith("data:"):
            yield msgspec.json.decode(line.removeprefix("data:").strip(), type=Event)


def _follow(session: Session, after: int) -> None:
    for event in parse(session.client.lines(path("events"), after=after)):
        if session.options.as_json:
            sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
            sys.stdout.flush()
        else:
            session.out.print("  ".join(printable(cell) for cell in _row(event)))


def _row(event: Event) -> tuple[object, ...]:
    data = msgspec.json.encode(event.data).decode() if event.data else "-"
    return event.seq, when(event.at), event.type, event.host, event.vm, data
