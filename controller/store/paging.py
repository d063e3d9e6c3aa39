"""Lists in pages by position (keyset): a page costs the same wherever it lies,
and rows added meanwhile shift nothing."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
K = TypeVar("K")


class Slice(NamedTuple, Generic[T, K]):
    """Items, and the position to go on after, or None on the last page."""

    items: list[T]
    next: K | None


def after_position(query: Any, columns: Sequence[Any], position: Any, *, newest_first: bool = False) -> Any:
    """Order by the columns, which together are unique, and keep the rows after ``position`` (as many values)."""
    if position is not None:
        values = position if isinstance(position, tuple | list) else (position,)
        query = query.where(_beyond(list(zip(columns, values, strict=True)), newest_first=newest_first))
    return query.order_by(*(column.desc() if newest_first else column.asc() for column in columns))


def filtered(query: Any, pairs: Iterable[tuple[Any, Any]]) -> Any:
    """Keep the rows whose columns have these values; None asks for nothing.

    No text in the database holds NUL: PostgreSQL refuses even to compare with it.
    """
    for column, value in pairs:
        if isinstance(value, str) and "\0" in value:
            query = query.where(column.in_([]))
        elif value is not None:
            query = query.where(column == value)
    return query


def _beyond(pairs: list[tuple[Any, Any]], *, newest_first: bool) -> Any:
    """``(a, b) > (x, y)`` written out, so that each value is converted by its own column."""
    (column, value), rest = pairs[0], pairs[1:]
    if isinstance(value, str):
        value = value.replace("\0", "")  # a cursor that was not made here; see filtered
    further = column < value if newest_first else column > value
    return further if not rest else further | ((column == value) & _beyond(rest, newest_first=newest_first))


def page_of(items: list[T], limit: int, position: Callable[[T], K]) -> Slice[T, K]:
    """Cut a page out of ``limit + 1`` items that were read."""
    cut = items[:limit]
    return Slice(cut, position(cut[-1]) if len(items) > limit else None)
