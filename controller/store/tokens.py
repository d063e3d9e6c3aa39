"""API tokens, stored as the SHA-256 of a secret of 256 random bits: too many to guess, so no slow hash is needed."""

import hashlib
import hmac
import secrets
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from agent.wire import access as wire
from agent.wire.base import utc_now
from controller.db import write
from controller.errors import TokenExists, TokenNotFound
from controller.models import Token
from controller.names import check_handle
from controller.store import events
from controller.store.paging import Slice, after_position, page_of

_PREFIX = "cf_"  # so that secret scanners, and people, know what they have found

#: Each use would be a write to disk; a minute is exact enough to see whether a token is still in use.
_LAST_USED_STEP = timedelta(minutes=1)


def create(name: str, role: wire.Role, expires_at: datetime | None = None) -> wire.NewToken:
    """Make a token; event ``token.created``. Its secret is in the answer and nowhere else.

    Raises NameInvalid, TokenExists where a token of this name is in force.
    """
    check_handle("Token", name)
    secret = _PREFIX + secrets.token_urlsafe(32)
    with write():
        if Token.get_or_none(Token.name == name, Token.revoked_at.is_null()) is not None:
            raise TokenExists(name=name)
        row = Token.create(uuid=uuid4(), name=name, role=role, sha256=_hash(secret), expires_at=expires_at)
        events.append("token.created", data={"token": row.uuid, "name": name, "role": role})
    return wire.NewToken(token=_wire(row), secret=secret)


def verify(secret: str) -> wire.Token | None:
    """Return the token that this secret belongs to, or None for one that is unknown, revoked or expired.

    The row is found by the hash of what was presented, which tells nothing about the stored ones; the comparison
    that decides is in constant time all the same.
    """
    presented = _hash(secret)
    row = Token.get_or_none(Token.sha256 == presented)
    if row is None or not hmac.compare_digest(row.sha256, presented):
        return None
    now = utc_now()
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
        return None
    if row.last_used_at is None or now - row.last_used_at >= _LAST_USED_STEP:
        with write():
            Token.update(last_used_at=now).where(Token.uuid == row.uuid).execute()
    return _wire(row)


def get(uuid: UUID) -> wire.Token:
    """Return a token that was not revoked. Raises TokenNotFound."""
    return _wire(_row(uuid))


def revoke(uuid: UUID) -> wire.Token:
    """Put a token out of force at once and return it; event ``token.revoked``. Raises TokenNotFound."""
    with write():
        row = _row(uuid)
        Token.update(revoked_at=utc_now()).where(Token.uuid == uuid).execute()
        events.append("token.revoked", data={"token": uuid, "name": row.name})
    return _wire(row)


def page(limit: int, after: str | None = None) -> Slice[wire.Token, str]:
    """Return one page of the tokens that were not revoked, by name."""
    query = Token.select().where(Token.revoked_at.is_null())
    rows = after_position(query, (Token.name,), after).limit(limit + 1)
    return page_of([_wire(row) for row in rows], limit, lambda token: token.name)


def _row(uuid: UUID) -> Token:
    row = Token.get_or_none(Token.uuid == uuid, Token.revoked_at.is_null())
    if row is None:
        raise TokenNotFound(token=uuid)
    return row


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _wire(row: Token) -> wire.Token:
    return wire.Token(
        uuid=row.uuid,
        name=row.name,
        role=row.role,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )
