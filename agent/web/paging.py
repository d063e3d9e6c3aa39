"""Lists in pages: ``?limit=&after=``, where ``after`` is a cursor that only the server reads."""

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import msgspec

from agent.web.errors import InvalidRequest
from agent.wire.base import Page, Request

T = TypeVar("T")
K = TypeVar("K")

Limit = Annotated[int, msgspec.Meta(ge=1, le=1000, description="The most items to return")]
Cursor = Annotated[
    str,
    msgspec.Meta(max_length=512, pattern="^[A-Za-z0-9_-]+$", description="Where to go on: `next` of the page before"),
]


class PageQuery(Request, kw_only=True, frozen=True):
    """The query parameters of every list. A list with filters derives from it."""

    limit: Limit = 100
    after: Cursor | None = None


def encode_cursor(position: Any) -> str:
    """Return a cursor for a position: anything that JSON can hold."""
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).rstrip(b"=").decode()


def decode_cursor(cursor: str, kind: type[K]) -> K:
    """Return the position of a cursor. Raises InvalidRequest for one that was not made here."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        return msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=kind)
    except (binascii.Error, UnicodeError, msgspec.DecodeError) as err:
        raise InvalidRequest(where="after", reason="not a cursor of this list") from err


def page_of(items: Iterable[T], query: PageQuery, key: Callable[[T], str]) -> Page[T]:
    """Cut one page out of a list that is wholly at hand, in the order of ``key``, which must be unique."""
    ordered = sorted(items, key=key)
    if query.after is not None:
        after = decode_cursor(query.after, str)
        ordered = [item for item in ordered if key(item) > after]
    cut = ordered[: query.limit]
    return Page(items=cut, next=encode_cursor(key(cut[-1])) if len(ordered) > len(cut) else None)
