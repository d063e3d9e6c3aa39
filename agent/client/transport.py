"""How an agent is reached: connections, deadlines, and what can go wrong on the way."""

import asyncio
import hashlib
import io
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from uuid import UUID

import aiohttp
import msgspec
from aiohttp.client_exceptions import UnixClientConnectorError

from agent.web.checkpoint import Checkpoint, no_checkpoint
from agent.web.errors import Error
from agent.wire.base import Page
from agent.wire.problem import Problem
from agent.wire.transaction import Transaction

T = TypeVar("T")

_JSON_LIMIT_BYTES = 64 * 1024 * 1024  # a page of 100 VMs, each with 50 disks in deep chains, has about 10 MB
_HOST_FILE_LIMIT_BYTES = 64 * 1024 * 1024  # above any agent's host_file_limit_bytes that makes sense
_CHUNK_BYTES = 64 * 1024
#: What the agent says of the call itself and not of the work: passed on, it would mislead the API's caller.
_GENERIC_CODES = frozenset(
    {"unauthorized", "forbidden", "route-not-found", "method-not-allowed", "invalid-request"}
    | {"unsupported-media-type", "request-refused", "internal-error"}
)


class AgentUnreachable(Error):
    """No usable answer came from the agent."""

    status, code = 503, "agent-unreachable"
    message = "The agent at {url} cannot be reached: {reason}. Nothing is known of the call's effect; repeat it"


class AgentProblem(Error):
    """The agent answered with a Problem, which is passed on."""

    status, code, message = 502, "agent-problem", "The agent at {url} refused the call: {detail}"

    def __init__(self, url: str, answer: Problem) -> None:
        super().__init__(url=url, detail=answer.detail, agent_status=answer.status, agent_code=answer.code)
        self.answer = answer

    def problem(self) -> Problem:
        """Return the agent's own Problem where it speaks of the work, else a 502 that names it."""
        return super().problem() if self.answer.code in _GENERIC_CODES else self.answer


@dataclass(frozen=True)
class Timeouts:
    """Deadlines in seconds; see the module."""

    connect_s: float = 5.0
    read_s: float = 30.0
    work_s: float = 600.0


@dataclass(frozen=True)
class HostFileContent:
    """The bytes of a host file as they travel (wire.host_file.FORMATS), checked against their hash."""

    data: bytes
    sha256: str


class Transport:
    """One agent by its URL: ``http://…``, ``https://…`` or ``unix:///path``.

    ``fingerprint`` (SHA-256 of the certificate, hex, colons allowed) pins an https agent in place of a CA.
    ``controller`` names the caller: an agent lets one controller change things.
    ``tls`` carries the controller's own certificate and CA where they are used. Use it as a context manager, or
    close() it; the connection pool belongs to the running loop.
    """

    def __init__(
        self,
        url: str,
        token: str,
        fingerprint: str | None = None,
        timeouts: Timeouts | None = None,
        tls: ssl.SSLContext | None = None,
        *,
        controller: UUID | None = None,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> None:
        self._timeouts = timeouts or Timeouts()
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self._controller = {} if controller is None else {"X-Coldframe-Controller": str(controller)}
        self._checkpoint = checkpoint
        self._aim(url, token, fingerprint)

    def _aim(self, url: str, token: str, fingerprint: str | None) -> None:
        self._pin = None if fingerprint is None else _pin(fingerprint)
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}", **self._controller}
        unix = self.url.startswith("unix://")
        self._base = "http://agent" if unix else self.url
        self._unix_path = self.url.removeprefix("unix://") if unix else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. The next call would open new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def move(self, url: str, token: str, fingerprint: str | None = None) -> None:
        """Use another address from the next call on. Calls under way end as AgentUnreachable: repeat them."""
        self._aim(url, token, fingerprint)
        await self.close()

    async def _get(self, path: str, kind: type[T], params: dict[str, str] | None = None) -> T:
        return await self._json("GET", path, kind, params=params, total_s=self._timeouts.read_s)

    async def _post(self, id: UUID, verb: str) -> Transaction:
        total_s = self._timeouts.read_s if verb == "renew" else self._timeouts.work_s
        return await self._json("POST", f"/v1/transactions/{id}/{verb}", Transaction, total_s=total_s)

    async def _put(self, path: str, data: bytes, sha256: str, kind: type[T], headers: dict[str, str]) -> T:
        headers = {**headers, "X-Content-SHA256": sha256, "Content-Type": "application/octet-stream"}
        return await self._json("PUT", path, kind, data=data, headers=headers, total_s=self._timeouts.work_s)

    async def _all(self, path: str, kind: type[Page[T]]) -> list[T]:
        """Follow the pages of a list to its end."""
        items: list[T] = []
        params: dict[str, str] = {}
        while True:
            page = await self._get(path, kind, params)
            items += page.items
            if page.next is None or params.get("after") == page.next:
                return items
            params = {"after": page.next}

    async def _json(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        total_s: float,
        params: dict[str, str] | None = None,
        body: Any = None,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> T:
        """Send one request and decode its answer."""
        headers = dict(headers or {})
        if body is not None:
            data, headers["Content-Type"] = msgspec.json.encode(body), "application/json"
        async with self._answer(method, path, total_s, params=params, data=data, headers=headers) as response:
            raw = await self._read(response, _JSON_LIMIT_BYTES)
        return self._decode(raw, kind)

    async def _content(self, path: str, headers: dict[str, str]) -> HostFileContent | None:
        async with self._answer("GET", path, self._timeouts.work_s, headers=headers) as response:
            if response.status == 304:
                return None
            data = await self._read(response, _HOST_FILE_LIMIT_BYTES)
            announced = response.headers.get("X-Content-SHA256", "")
        found = sha256_of(data)
        if found != announced:
            reason = f"{len(data)} bytes with SHA-256 {found} arrived, {announced or 'none'} was announced"
            raise AgentUnreachable(url=self.url, reason=reason)
        return HostFileContent(data, found)

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        total_s: float | None,
        *,
        data: bytes | AsyncIterator[bytes] | None = None,
        **arguments: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; yields an answer below 400. Raises AgentProblem, AgentUnreachable (also while reading).

        ``total_s`` None: as long as it takes, while the agent sends something within ``work_s``.
        """
        timeouts = self._timeouts
        timeout = aiohttp.ClientTimeout(
            total=total_s, sock_connect=timeouts.connect_s, sock_read=timeouts.work_s if total_s is None else None
        )
        try:
            self._checkpoint(f"before {method} {path}")
            async with self._open().request(
                method,
                self._base + path,
                data=io.BytesIO(data) if isinstance(data, bytes) else data,  # bytes above 1 MiB would go in one piece
                timeout=timeout,
                allow_redirects=False,
                ssl=self._tls if self._tls is not None else (self._pin or True),
                **arguments,
            ) as response:
                if response.status >= 400:
                    raise AgentProblem(self.url, self._problem(response, await self._read(response, _JSON_LIMIT_BYTES)))
                if response.status >= 300 and response.status != 304:
                    raise AgentUnreachable(url=self.url, reason=f"redirected ({response.status})")
                yield response
            self._checkpoint(f"after {method} {path}")
        except TimeoutError as err:
            raise AgentUnreachable(url=self.url, reason=f"no answer to {method} {path} in time") from err
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as err:
            raise AgentUnreachable(url=self.url, reason=_reason(err)) from err

    def _open(self) -> aiohttp.ClientSession:
        """Return the session, made at the first call: it belongs to the loop that runs then."""
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._unix_path is not None:
                connector = aiohttp.UnixConnector(self._unix_path)
            else:
                connector = aiohttp.TCPConnector(ssl=self._pin or True, socket_factory=_watched_socket)
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, auto_decompress=False)
        return self._session

    async def _read(self, response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
        data = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            data += chunk
            if len(data) > limit_bytes:
                raise AgentUnreachable(url=self.url, reason=f"the answer has more than {limit_bytes} bytes")
        return bytes(data)

    def _problem(self, response: aiohttp.ClientResponse, raw: bytes) -> Problem:
        if response.content_type != "application/problem+json":
            raise AgentUnreachable(url=self.url, reason=f"status {response.status} from something that is no agent")
        return self._decode(raw, Problem)

    def _decode(self, raw: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(raw, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise AgentUnreachable(url=self.url, reason=f"the answer cannot be read: {err}") from err


def _watched_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Make a socket that notices a cut network while it waits for an answer (tcp(7)), and not only at the deadline.

    Probes go out after 5 s of silence, every 2 s; after 11 s without any answer, or with data on the way for so
    long, the connection is broken.
    """
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 5),
        (socket.TCP_KEEPINTVL, 2),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, 11_000),
    ):
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _reason(err: Exception) -> str:
    """Say why there was no answer; aiohttp's own text for a failed connection speaks of TLS where there is none."""
    if isinstance(err, aiohttp.ClientSSLError) or not isinstance(err, aiohttp.ClientConnectorError):
        return str(err) or type(err).__name__
    where = err.path if isinstance(err, UnixClientConnectorError) else f"{err.host}:{err.port}"
    number = err.os_error.errno or 0
    # getaddrinfo's own numbers are negative; asyncio's text for a refused connection names the address once more.
    return f"{where}: {os.strerror(number) if number > 0 else err.os_error.strerror or err.os_error}"


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 as the wire carries it."""
    return hashlib.sha256(data).hexdigest()


def _pin(fingerprint: str) -> aiohttp.Fingerprint:
    """Return aiohttp's pin. Raises ValueError for what is not 64 hexadecimal digits, with or without colons."""
    return aiohttp.Fingerprint(bytes.fromhex(fingerprint.replace(":", "")))
