"""Entity tags (RFC 9110, 8.8.3 and 13.1)."""

import hashlib
import re

from agent.web.errors import InvalidRequest

ANY = "*"
_TAG = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')


def of(data: bytes) -> str:
    """Return the entity tag of a body, without quotes."""
    return hashlib.sha256(data).hexdigest()


def quote(tag: str) -> str:
    """Return the tag as it stands in a header."""
    return f'"{tag}"'


def parse(header: str, name: str, *, strong: bool) -> list[str]:
    """Return the tags of ``If-Match`` or ``If-None-Match``, unquoted; ``["*"]`` for any.

    With ``strong``, weak tags are left out, since they never match where bytes matter. Raises InvalidRequest.
    """
    if header.strip() == ANY:
        return [ANY]
    tags, position = [], 0
    while position < len(header):
        found = _TAG.match(header, position)
        if found is None:
            raise InvalidRequest(where=name, reason='expected entity tags in quotes, for example "5d2d9d9e"')
        if not (strong and found[1]):
            tags.append(found[2])
        position = found.end()
    return tags
