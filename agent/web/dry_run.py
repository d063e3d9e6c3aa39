"""``?dry_run=true`` on changing calls: the answer is the plan, and nothing changes.

What is wrong with the request itself is the same error as without it. What stands in the way of a good request is a
refusal in the plan, and the answer is 200: so a caller sees all that there is to see in one place.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from agent.web.call import Call
from agent.web.errors import BodyTooLarge, Error, Forbidden, InvalidRequest, Unauthorized, UnsupportedMediaType
from agent.wire.plan import Plan, planned

CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
PARAMETER = "dry_run"
DESCRIPTION = "Answer 200 with the plan, and change nothing"

#: A planner takes what the route's handler takes, and answers with the plan or raises what the handler would raise.
Planner = Callable[..., Awaitable[Plan]]

_WORDS = {"true": True, "1": True, "false": False, "0": False}
_OF_THE_REQUEST = (InvalidRequest, Unauthorized, Forbidden, BodyTooLarge, UnsupportedMediaType)


def is_wanted(request: web.Request) -> bool:
    """Say whether a changing call is only to be planned. Raises InvalidRequest for anything but one clear word."""
    if request.method not in CHANGING:
        return False
    given = request.query.getall(PARAMETER, [])
    if not given:
        return False
    if len(given) > 1 or given[0] not in _WORDS:
        raise InvalidRequest(where=f"?{PARAMETER}", reason="expected true or false, once")
    return _WORDS[given[0]]


async def plan(name: str, planner: Planner, call: Call, arguments: Mapping[str, Any]) -> Plan:
    """Return the plan. An error that the state of things is the reason of becomes a refusal."""
    try:
        return await planner(call, **arguments)
    except _OF_THE_REQUEST:
        raise
    except Error as err:
        told = err.problem()
        if told.code == Error.code:
            raise
        return planned(name, [], [told])
