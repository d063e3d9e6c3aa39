"""Slices of the store as pages of the wire: positions become cursors and back."""

from datetime import datetime, timedelta
from typing import Any, TypeVar

from agent.web.errors import InvalidRequest
from agent.web.paging import PageQuery, decode_cursor, encode_cursor
from agent.wire.base import Page
from controller.store.paging import Slice

T = TypeVar("T")


def position(query: PageQuery, kind: Any) -> Any:
    """Return the position that the caller's cursor stands for; its times are in UTC. Raises InvalidRequest."""
    found = None if query.after is None else decode_cursor(query.after, kind)
    for one in found if isinstance(found, tuple) else ():
        if isinstance(one, datetime) and one.utcoffset() != timedelta(0):
            raise InvalidRequest(where="after", reason="not a cursor of this list")
    return found


def page(cut: Slice[T, Any]) -> Page[T]:
    """Return a slice as a page."""
    return Page(items=cut.items, next=None if cut.next is None else encode_cursor(cut.next))
