"""What every wire type is made of."""

from datetime import UTC, datetime
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Request(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A body that a client sends. An unknown field is an error, so a typing mistake is never ignored."""


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """A body that a server sends. Unknown fields are tolerated: a server may be newer than its client."""


class Page(Answer, Generic[T], kw_only=True, frozen=True):
    """One page of a list. ``next`` is the cursor for ``?after=``, or null on the last page."""

    items: list[T]
    next: str | None = None


def utc_now() -> datetime:
    """Return the present time in UTC, cut to microseconds as the wire carries it."""
    return datetime.now(UTC)
