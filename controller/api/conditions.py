"""Changes that are allowed only to the version that the caller saw (``If-Match``)."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from agent.web import etag
from agent.web.call import Call
from agent.web.routes import Header
from controller.db import write

T = TypeVar("T")

IF_MATCH = Header("If-Match", "The ETag that GET answers with now", pattern=r'\*|("[0-9a-f]{64}"(, *)?)+')


def change(call: Call, what: str, read: Callable[[], Any], work: Callable[[], T]) -> T:
    """Do the work if the resource, as GET shows it, has the version that ``If-Match`` names, all in one transaction.

    Runs on the database's thread. Raises PreconditionFailed, and whatever the two raise.
    """
    with write():
        call.require_match(what, etag.of(msgspec.json.encode(read())))
        return work()
