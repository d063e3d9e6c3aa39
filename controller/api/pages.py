"""Slices of the store as pages of the wire: positions become cursors and back."""

from typing import Any, TypeVar

from agent.web.paging import PageQuery, decode_cursor, encode_cursor
from agent.wire.base import Page
from controller.store.paging import Slice

T = TypeVar("T")


def position(query: PageQuery, kind: Any) -> Any:
    """Return the position that the caller's cursor stands for. Raises InvalidRequest."""
    return None if query.after is None else decode_cursor(query.after, kind)


def page(cut: Slice[T, Any]) -> Page[T]:
    """Return a slice as a page."""
    return Page(items=cut.items, next=None if cut.next is None else encode_cursor(cut.next))
