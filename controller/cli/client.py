"""The controller's API for a synchronous caller."""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
import typer
from yarl import URL

from agent.web.auth import Secret
from agent.wire.base import Page
from agent.wire.operation import Operation
from agent.wire.plan import Plan, PlannedStep, planned
from agent.wire.problem import Problem
from controller.cli.errors import Answered, BytesDiffer, ControllerUnreachable, FileRefused, NotAController

T = TypeVar("T")

#: No limit on the whole: a long poll may take its time. The controller sends something at least every minute.
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=90)
#: For what may take hours before it answers.
PATIENT = aiohttp.ClientTimeout(total=None, sock_connect=10)
PAGE_LIMIT = 200
_CHUNK_BYTES = 256 * 1024


def path(*parts: str) -> str:
    """Return ``/v1/...``, each part quoted, so that no name leaves its place. Raises BadParameter for an empty one."""
    if not all(parts):
        raise typer.BadParameter("a name or UUID is empty; nothing was changed")
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


class PlanMade(Exception):
    """What a dry run came to: a command ends with its plan, whatever it would have done next."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan


class Client:
    """One connection to a controller. Errors are ControllerUnreachable, NotAController and Answered.

    With ``dry_run`` the first call that would change anything, here or there, ends in PlanMade instead.
    """

    def __init__(self, url: str, token: Secret | None, *, dry_run: bool = False) -> None:
        self.url = url.rstrip("/")
        self._dry_run = dry_run
        self._headers = {"Authorization": f"Bearer {token.reveal()}"} if token else {}
        self._runner = asyncio.Runner()
        self._session: aiohttp.ClientSession | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._runner.run(self._session.close())
        self._runner.close()

    def get(self, where: str, kind: type[T], **query: str | int) -> T:
        """Read one resource."""
        return self._decode(where, kind, self._runner.run(self._call("GET", where, query=query))[1])

    def edit(self, where: str, kind: type[T], body_of: Callable[[T], Any]) -> T:
        """Change a resource, by a body made from how it is now: a change by somebody else in between is a 412."""
        _, data, tag = self._runner.run(self._tagged("GET", where))
        body = body_of(self._decode(where, kind, data))
        _, data, _ = self._runner.run(self._tagged("PATCH", where, body=body, headers={"If-Match": tag} if tag else {}))
        return self._decode(where, kind, data)

    def items(self, where: str, kind: type[T], **query: str | int) -> list[T]:
        """Read a whole list, page after page."""
        found: list[T] = []
        page: Page[T] = self.get(where, Page[kind], limit=PAGE_LIMIT, **query)  # type: ignore[valid-type]
        found += page.items
        while page.next is not None:
            page = self.get(where, Page[kind], limit=PAGE_LIMIT, after=page.next, **query)  # type: ignore[valid-type]
            found += page.items
        return found

    def change(self, method: str, where: str, kind: type[T], body: Any = None, key: str | None = None) -> T | Operation:
        """Make a changing call; returns the Operation where the controller answers 202, else the resource."""
        headers = {"Idempotency-Key": key} if key else {}
        status, data = self._runner.run(self._call(method, where, body=body, headers=headers))
        if status == 202:
            return self._decode(where, Operation, data)
        return self._decode(where, kind, data)

    def put(self, where: str, kind: type[T], body: Any) -> T:
        """Set a resource as a whole."""
        return self._decode(where, kind, self._runner.run(self._call("PUT", where, body=body))[1])

    def act(self, method: str, where: str) -> Operation | None:
        """Make a changing call that returns nothing of use unless it is accepted as an Operation."""
        status, data = self._runner.run(self._call(method, where))
        return self._decode(where, Operation, data) if status == 202 else None

    def download(self, where: str, target: Path, sha256: str) -> None:
        """Write a resource's bytes to a file, all or nothing. Raises BytesDiffer and FileRefused."""
        if self._dry_run:
            step = PlannedStep(action="write-file", name="write the bytes to a file here", path=str(target.absolute()))
            raise PlanMade(planned("download", [step], []))
        try:
            descriptor, name = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name[:100]}.")
        except OSError as err:
            raise FileRefused(path=target, reason=err.strerror) from err
        partial = Path(name)
        digest = hashlib.sha256()
        try:
            with os.fdopen(descriptor, "wb") as file:
                for chunk in self._stream(where):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() != sha256:
                raise BytesDiffer(found=digest.hexdigest(), expected=sha256, path=target)
            partial.replace(target)
        except OSError as err:
            raise FileRefused(path=target, reason=err.strerror) from err
        finally:
            partial.unlink(missing_ok=True)

    def save(self, where: str, target: Path, *, replace: bool, **query: str | int) -> int:
        """Write an answer of any size to a file, all or nothing; return its size. Raises FileRefused.

        However long it takes to begin: a file of many gigabytes may have to be made first.
        """
        if self._dry_run:
            step = PlannedStep(action="write-file", name=f"write {target}", path=str(target))
            raise PlanMade(planned("download", [step], []))
        taken = "it exists already; use --force to replace it"
        if target.exists() and not replace:
            raise FileRefused(path=target, reason=taken)
        try:
            descriptor, name = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name[:100]}.")
        except OSError as err:
            raise FileRefused(path=target, reason=err.strerror) from err
        partial, size_bytes = Path(name), 0
        try:
            with os.fdopen(descriptor, "wb") as file:
                for chunk in self._stream(where, query, PATIENT):
                    size_bytes += file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                partial.replace(target)
            else:
                target.hardlink_to(partial)  # and not rename: what has come there meanwhile stays
            _sync(target.absolute().parent)
        except FileExistsError as err:
            raise FileRefused(path=target, reason=taken) from err
        except OSError as err:
            raise FileRefused(path=target, reason=err.strerror) from err
        finally:
            partial.unlink(missing_ok=True)
        return size_bytes

    def send(self, where: str, source: Path, kind: type[T], key: str, **query: str | int) -> T:
        """Send a file of any size; return the answer, however long that takes. Raises FileRefused."""
        try:
            with source.open("rb") as file:
                headers = {"Idempotency-Key": key, "Content-Type": "application/octet-stream"}
                more: dict[str, Any] = {"query": query, "data": file, "headers": headers, "limits": PATIENT}
                return self._decode(where, kind, self._runner.run(self._call("POST", where, **more))[1])
        except OSError as err:
            raise FileRefused(path=source, reason=err.strerror) from err

    def lines(self, where: str, **query: str | int) -> Iterator[str]:
        """Read an endless text answer line by line, without line ends."""
        rest = b""
        for chunk in self._stream(where, query):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", "replace").rstrip("\r")

    def _stream(
        self, where: str, query: dict[str, str | int] | None = None, limits: aiohttp.ClientTimeout = TIMEOUT
    ) -> Iterator[bytes]:
        chunks = self._chunks(where, query, limits)

        async def following() -> bytes | None:
            return await anext(chunks, None)

        try:
            while (chunk := self._runner.run(following())) is not None:
                yield chunk
        finally:
            self._runner.run(chunks.aclose())

    def _decode(self, where: str, kind: type[T], data: bytes) -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.DecodeError as err:
            raise NotAController(url=self.url, reason=f"the answer to {where} cannot be read ({err})") from err

    async def _call(self, method: str, where: str, **more: Any) -> tuple[int, bytes]:
        status, content, _ = await self._tagged(method, where, **more)
        return status, content

    async def _tagged(
        self,
        method: str,
        where: str,
        *,
        query: dict[str, str | int] | None = None,
        body: Any = None,
        data: IO[bytes] | None = None,
        headers: dict[str, str] | None = None,
        limits: aiohttp.ClientTimeout = TIMEOUT,
    ) -> tuple[int, bytes, str | None]:
        """Return the answer's status, body and ETag. ``body`` is sent as JSON, ``data`` as it is."""
        plans = self._dry_run and method != "GET"
        query = {**(query or {}), **({"dry_run": "true"} if plans else {})}
        sent = data if body is None else msgspec.json.encode(body)
        extra = {"Content-Type": "application/json"} if body is not None else {}
        try:
            async with self._request(method, where, query, sent, {**extra, **(headers or {})}, limits) as answer:
                content = await answer.read()
                self._check(answer, content)
                if plans:
                    raise PlanMade(self._decode(where, Plan, content))
                return answer.status, content, answer.headers.get("ETag")
        except (aiohttp.ClientError, TimeoutError, ValueError) as err:
            raise ControllerUnreachable(url=self.url, reason=_reason(err)) from err

    def _request(  # noqa: PLR0917 - what a request is made of
        self,
        method: str,
        where: str,
        query: dict[str, str | int] | None = None,
        data: bytes | IO[bytes] | None = None,
        headers: dict[str, str] | None = None,
        limits: aiohttp.ClientTimeout = TIMEOUT,
    ) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=TIMEOUT, trust_env=False)
        # No redirects: the token is for this controller alone.
        url = URL(self.url + where, encoded=True).update_query(query or {})
        return self._session.request(method, url, data=data, headers=headers, timeout=limits, allow_redirects=False)

    def _check(self, answer: aiohttp.ClientResponse, content: bytes) -> None:
        if answer.status < 300:
            return
        if answer.content_type != "application/problem+json":
            raise NotAController(url=self.url, reason=f"it answers {answer.status} as {answer.content_type}")
        raise Answered(self._decode(answer.url.path, Problem, content))

    async def _chunks(
        self, where: str, query: dict[str, str | int] | None, limits: aiohttp.ClientTimeout
    ) -> AsyncGenerator[bytes, None]:
        try:
            async with self._request("GET", where, query, limits=limits) as answer:
                if answer.status != 200:
                    self._check(answer, await answer.read())
                async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                    yield chunk
        except (aiohttp.ClientError, TimeoutError, ValueError) as err:
            raise ControllerUnreachable(url=self.url, reason=_reason(err)) from err


def _sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(err: Exception) -> str:
    """Say in a few words why there was no answer."""
    if isinstance(err, aiohttp.ClientConnectorCertificateError):
        return f"TLS: {err.certificate_error}"
    if isinstance(err, aiohttp.ClientSSLError):  # its errno is OpenSSL's own, and means something else to the system
        return f"TLS: {err.os_error}"
    if isinstance(err, aiohttp.ClientConnectorError) and err.os_error.errno:
        return os.strerror(err.os_error.errno)
    if isinstance(err, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return "that is no address; it begins with http:// or https://"
    return str(err) or type(err).__name__
