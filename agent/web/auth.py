"""Who is calling: bearer tokens, and root on the unix socket.

An authenticator looks at a request and returns an Identity or None; None becomes 401. Tokens are compared in
constant time; none is ever logged or shown.
"""

import hmac
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from agent.web.errors import Forbidden, SettingsError
from agent.wire.access import Role

#: From the least to the most powerful; each may do what those before it may.
ROLES: tuple[Role, ...] = ("reader", "operator", "admin")

#: A token file larger than this is not a token file.
_TOKEN_FILE_LIMIT_BYTES = 4096


@dataclass(frozen=True)
class Identity:
    """A caller that is known. ``name`` goes into the audit log."""

    name: str
    role: Role


class Secret:
    """A secret that no log line, traceback or repr shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._text

    def equals(self, presented: str) -> bool:
        """Compare in a time that does not depend on where the two differ."""
        return hmac.compare_digest(
            self._text.encode("utf-8", "surrogateescape"), presented.encode("utf-8", "surrogateescape")
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.equals(other._text)

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(***)"


Authenticator = Callable[[web.Request], Awaitable[Identity | None]]


def read_secret_file(path: Path) -> Secret:
    """Read a secret from a file that only its owner can read; surrounding white space is not part of it.

    Raises SettingsError where the file is missing, empty, open to group or others, or no regular file.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_TOKEN_FILE_LIMIT_BYTES + 1)
    except OSError as err:
        raise SettingsError(where=path, reason=f"the secret cannot be read: {err.strerror}") from err
    if not stat.S_ISREG(mode):
        raise SettingsError(where=path, reason="the secret must be in a regular file")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(where=path, reason=f"group or others may use this file; run: chmod 600 {path}")
    try:
        text = data.decode().strip()
    except UnicodeDecodeError as err:
        raise SettingsError(where=path, reason="the secret must be text") from err
    if not text or len(data) > _TOKEN_FILE_LIMIT_BYTES:
        raise SettingsError(where=path, reason="the secret must have between 1 and 4096 bytes")
    return Secret(text)


def bearer(request: web.Request) -> str | None:
    """Return the token of ``Authorization: Bearer TOKEN``, or None."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def one_secret(secret: Secret, name: str) -> Authenticator:
    """Let in whoever presents this one secret, as an admin called ``name``."""

    async def authenticate(request: web.Request) -> Identity | None:
        presented = bearer(request)
        return Identity(name, "admin") if presented is not None and secret.equals(presented) else None

    return authenticate


def by_lookup(lookup: Callable[[str], Awaitable[Identity | None]]) -> Authenticator:
    """Let in whoever ``lookup`` finds for the presented token. The lookup is by hash, so timing tells nothing."""

    async def authenticate(request: web.Request) -> Identity | None:
        presented = bearer(request)
        return None if presented is None else await lookup(presented)

    return authenticate


async def root_on_unix_socket(request: web.Request) -> Identity | None:
    """Let in root, and the daemon's own user, on a unix socket without a token: both can read its token anyway."""
    peer = None if request.transport is None else request.transport.get_extra_info("socket")
    if peer is None or peer.family != socket.AF_UNIX:
        return None
    # struct ucred of unix(7): pid, uid, gid.
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return Identity(f"uid:{uid}", "admin") if uid in {0, os.geteuid()} else None


def first_of(*authenticators: Authenticator) -> Authenticator:
    """Let in whoever any of these lets in, asked in this order."""

    async def authenticate(request: web.Request) -> Identity | None:
        for authenticator in authenticators:
            identity = await authenticator(request)
            if identity is not None:
                return identity
        return None

    return authenticate


def require_role(identity: Identity, needed: Role) -> None:
    """Raise Forbidden unless the identity's role is ``needed`` or above it."""
    if ROLES.index(identity.role) < ROLES.index(needed):
        raise Forbidden(needed=needed, name=identity.name, role=identity.role)
