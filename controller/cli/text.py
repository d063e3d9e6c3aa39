"""Values as people read them. Nothing here trusts what it prints: names come from hosts and other users."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def printable(value: object) -> str:
    """Return the value on one line, with control and direction-changing characters escaped; ``-`` for nothing."""
    if value is None or value == "":
        return "-"
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(value))


def when(at: datetime | None) -> str:
    """Return a time in UTC to the second."""
    return "-" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def size(count: int | None) -> str:
    """Return a number of bytes with a binary unit, for example ``5.8 KiB``."""
    if count is None:
        return "-"
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in _UNITS:
        value /= 1024
        if value < 1024 or unit == _UNITS[-1]:
            break
    return f"{value:.1f} {unit}"


def table(console: Console, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under headings, aligned; only the headings where there are no rows."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    print_lines(console, made)


def facts(console: Console, pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair on each line."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, Text(printable(value)))
    print_lines(console, made)


def print_lines(console: Console, renderable: object) -> None:
    """Print a table or tree; without a terminal, lines carry no padding at their end."""
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as capture:
        console.print(renderable)
    for line in capture.get().splitlines():
        console.print(line.rstrip())
