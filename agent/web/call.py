"""One call as a handler sees it: who calls, its conditions, its body."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
from aiohttp import web

from agent.web import etag
from agent.web.auth import Identity
from agent.web.errors import BodyTooLarge, InvalidRequest, PreconditionFailed, UnsupportedMediaType

T = TypeVar("T")

#: What the authentication middleware found, and the request's id, kept on the request.
IDENTITY = web.RequestKey("identity", Identity)
REQUEST_ID = web.RequestKey("request_id", str)
STARTED = web.RequestKey("started", bool)

_CHUNK_BYTES = 64 * 1024
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_FIELD = re.compile(r"^(?P<reason>.*?)(?: - at `(?P<where>[^`]*)`)?$", re.DOTALL)


@dataclass(frozen=True)
class Reply(Generic[T]):
    """An answer whose status or headers differ from the route's. ``Reply[Vm]`` as return type declares ``Vm``."""

    value: T
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


class Call:
    """What a handler gets besides its parameters."""

    def __init__(self, request: web.Request, body_limit_bytes: int) -> None:
        self.request = request
        self.body_limit_bytes = body_limit_bytes

    @property
    def identity(self) -> Identity:
        """Who is calling."""
        return self.request[IDENTITY]

    @property
    def request_id(self) -> str:
        """The id under which the log knows this request."""
        return self.request[REQUEST_ID]

    @property
    def idempotency_key(self) -> str | None:
        """The caller's ``Idempotency-Key``. Raises InvalidRequest for one that is not 1 to 128 visible characters."""
        key = self.request.headers.get("Idempotency-Key")
        if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
            raise InvalidRequest(where="Idempotency-Key", reason="expected 1 to 128 visible ASCII characters")
        return key

    def if_match(self) -> list[str] | None:
        """Return the tags of ``If-Match`` without quotes, ``["*"]`` for any, None where there is no such header."""
        header = self.request.headers.get("If-Match")
        return None if header is None else etag.parse(header, "If-Match", strong=True)

    def require_match(self, what: str, found: str | None) -> None:
        """Raise PreconditionFailed unless ``If-Match`` is absent or allows ``found`` (None: nothing is there)."""
        wanted = self.if_match()
        if wanted is not None and (found is None or (wanted != [etag.ANY] and found not in wanted)):
            raise PreconditionFailed(what=what, found=found or "none", expected=", ".join(wanted) or "none")

    def none_match(self, found: str) -> bool:
        """Return whether ``If-None-Match`` names ``found``, so that 304 is the answer."""
        header = self.request.headers.get("If-None-Match")
        if header is None:
            return False
        tags = etag.parse(header, "If-None-Match", strong=False)
        return tags == [etag.ANY] or found in tags

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the raw body. Raises BodyTooLarge as soon as it passes the route's limit, whatever its header says."""
        limit = self.body_limit_bytes
        if (self.request.content_length or 0) > limit:
            raise BodyTooLarge(limit_bytes=limit)
        seen = 0
        async for chunk in self.request.content.iter_chunked(_CHUNK_BYTES):
            seen += len(chunk)
            if seen > limit:
                raise BodyTooLarge(limit_bytes=limit)
            yield chunk

    async def read(self) -> bytes:
        """Return the raw body, bounded by the route's limit."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def json(self, kind: Any) -> Any:
        """Return the JSON body as ``kind``. Raises UnsupportedMediaType, BodyTooLarge, InvalidRequest."""
        if self.request.content_type != "application/json":
            raise UnsupportedMediaType(found=self.request.content_type, expected="application/json")
        return decode(await self.read(), kind)


def decode(data: bytes, kind: Any) -> Any:
    """Return JSON as ``kind``. Raises InvalidRequest naming the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as err:
        raise refusal(err, "body") from err
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise InvalidRequest(where="body", reason=f"not JSON: {err}") from err
    except RecursionError as err:
        raise InvalidRequest(where="body", reason="nested too deeply") from err


def refusal(err: msgspec.ValidationError, place: str) -> InvalidRequest:
    """Turn msgspec's message, which ends in "- at `$.field`", into an InvalidRequest that names the field."""
    found = _FIELD.match(str(err))
    where = (found and found["where"]) or "$"
    reason = found["reason"] if found else str(err)
    return InvalidRequest(where=place + where.removeprefix("$"), reason=reason)
