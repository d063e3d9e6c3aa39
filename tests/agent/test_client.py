"""The client against servers that answer well, badly or not at all. The routes themselves are in tests/agent/api."""

import asyncio
import hashlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest
from aiohttp import web

from agent.client import AgentClient, AgentProblem, AgentUnreachable, Timeouts
from agent.client import transport as client_module
from agent.wire.event import HostEvents
from agent.wire.host import HostFacts
from agent.wire.problem import Problem

VM = UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve one handler for every path; returns the URL."""
    runners: list[web.ServerRunner] = []

    async def start(handler: Handler, ssl_context: ssl.SSLContext | None = None, path: Path | None = None) -> str:
        async def dispatch(request: web.BaseRequest) -> web.StreamResponse:
            assert isinstance(request, web.BaseRequest)
            return await handler(request)  # type: ignore[arg-type] # a BaseRequest is enough for these handlers

        runner = web.ServerRunner(web.Server(dispatch), shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        if path is not None:
            await web.UnixSite(runner, path).start()
            return f"unix://{path}"
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context).start()
        return f"{'https' if ssl_context else 'http'}://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


def facts() -> web.Response:
    return web.Response(body=msgspec.json.encode(HostFacts.example()), content_type="application/json")


def problem(status: int, code: str) -> web.Response:
    body = Problem(title="T", status=status, code=code, detail="because")
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/problem+json")


async def test_the_token_is_presented_and_the_answer_typed(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer t"
        assert request.query == {"controller": "192.0.2.1"}
        return facts()

    async with AgentClient(await serve(handler), "t") as client:
        assert await client.host("192.0.2.1") == HostFacts.example()


async def test_fields_that_a_newer_agent_adds_are_tolerated(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        raw = msgspec.json.decode(msgspec.json.encode(HostEvents.example())) | {"new": 1}
        return web.Response(body=msgspec.json.encode(raw), content_type="application/json")

    async with AgentClient(await serve(handler), "t") as client:
        assert await client.events(0) == HostEvents.example()


async def test_a_unix_socket_is_an_url_too(serve: Callable[..., Awaitable[str]], tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        return facts()

    async with AgentClient(await serve(handler, path=tmp_path / "s"), "") as client:
        assert (await client.host()).hostname == "kvm1.example.org"


@pytest.mark.parametrize(
    ("status", "code", "passed_on"),
    [
        (409, "domain-running", True),
        (404, "domain-not-found", True),
        (507, "no-space", True),
        (503, "hypervisor-unavailable", True),
        (401, "unauthorized", False),
        (404, "route-not-found", False),
        (400, "invalid-request", False),
        (500, "internal-error", False),
    ],
)
async def test_what_speaks_of_the_work_is_passed_on_and_what_speaks_of_the_call_is_a_502(
    serve: Serve, status: int, code: str, passed_on: bool
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return problem(status, code)

    async with AgentClient(await serve(handler), "t") as client:
        with pytest.raises(AgentProblem) as caught:
            await client.vm(VM)
    found = caught.value.problem()
    assert (found.status, found.code) == ((status, code) if passed_on else (502, "agent-problem"))
    assert caught.value.answer.code == code
    assert "because" in found.detail


async def test_nobody_there_is_unreachable(unused_tcp_port: int, tmp_path: Path) -> None:
    refused, socket = f"127.0.0.1:{unused_tcp_port}", tmp_path / "none"
    for url, reason in (
        (f"http://{refused}", f"{refused}: Connection refused"),
        (f"unix://{socket}", f"{socket}: No such file or directory"),
        ("http://host.invalid:1", "host.invalid:1: "),
    ):
        async with AgentClient(url, "t") as client:
            with pytest.raises(AgentUnreachable) as caught:
                await client.host()
        found = caught.value.problem().facts
        assert found["url"] == url
        assert found["reason"].startswith(reason)
        assert "ssl" not in found["reason"]


async def test_an_agent_that_never_answers_is_unreachable_after_the_deadline(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return facts()

    async with AgentClient(await serve(handler), "t", timeouts=Timeouts(read_s=0.05)) as client:
        with pytest.raises(AgentUnreachable, match="in time"):
            await client.host()


async def test_a_connection_cut_before_or_in_the_middle_of_an_answer_is_unreachable(serve: Serve) -> None:
    async def before(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return facts()

    async def middle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.abort()
        return response

    for handler in (before, middle):
        async with AgentClient(await serve(handler), "t") as client:
            with pytest.raises(AgentUnreachable):
                await client.host()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"<html>", "text/html"),
        (200, b'{"hostname": 1}', "application/json"),
        (200, b"\xff", "application/json"),
        (302, b"", "text/plain"),
        (500, b"<html>", "text/html"),
        (500, b"{}", "application/problem+json"),
    ],
)
async def test_an_answer_that_no_agent_gives_is_unreachable(serve: Serve, status: int, body: bytes, kind: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, content_type=kind, headers={"Location": "http://x/"})

    async with AgentClient(await serve(handler), "t") as client:
        with pytest.raises(AgentUnreachable):
            await client.host()


async def test_an_answer_without_end_is_cut(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_JSON_LIMIT_BYTES", 100_000)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100):
            await response.write(b" " * 65536)
        return response

    async with AgentClient(await serve(handler), "t") as client:
        with pytest.raises(AgentUnreachable, match="more than 100000 bytes"):
            await client.host()


@pytest.mark.parametrize("announced", ["right", "0" * 64, None])
async def test_bytes_are_checked_against_their_hash(serve: Serve, announced: str | None) -> None:
    data = b"nvram"
    right = hashlib.sha256(data).hexdigest()

    async def handler(request: web.Request) -> web.Response:
        headers = {} if announced is None else {"X-Content-SHA256": announced.replace("right", right)}
        return web.Response(body=data, headers=headers)

    async with AgentClient(await serve(handler), "t") as client:
        if announced == "right":
            assert await client.captured(uuid4(), "nvram") == data
        else:
            with pytest.raises(AgentUnreachable, match=right):
                await client.captured(uuid4(), "nvram")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """A server's context with a certificate that no CA knows, and the certificate's fingerprint."""
    cert = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=h"
    subprocess.run([*command.split(), "-keyout", f"{cert}.key", "-out", cert], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, f"{cert}.key")
    return context, hashlib.sha256(ssl.PEM_cert_to_DER_cert(cert.read_text())).hexdigest()


@pytest.mark.case("X4")
async def test_only_the_certificate_that_was_enrolled_is_talked_to(
    serve: Callable[..., Awaitable[str]], certificate: tuple[ssl.SSLContext, str]
) -> None:
    context, fingerprint = certificate
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return facts()

    url = await serve(handler, ssl_context=context)
    colons = ":".join(fingerprint[at : at + 2] for at in range(0, 64, 2)).upper()
    for pin in (fingerprint, colons):
        async with AgentClient(url, "t", pin) as client:
            await client.host()
    seen.clear()
    for wrong in (None, "00" * 32):
        async with AgentClient(url, "t", wrong) as client:
            with pytest.raises(AgentUnreachable):
                await client.host()
    assert seen == []


def test_a_fingerprint_that_is_none_is_refused() -> None:
    for text in ("abc", "zz" * 32, "00"):
        with pytest.raises(ValueError, match=r"."):
            AgentClient("https://x", "t", text)


@pytest.mark.case("X5")
async def test_the_token_is_in_no_error(unused_tcp_port: int) -> None:
    async with AgentClient(f"http://127.0.0.1:{unused_tcp_port}", "the-token") as client:
        with pytest.raises(AgentUnreachable) as caught:
            await client.host()
    assert "the-token" not in f"{caught.value!r} {caught.value.problem()} {client!r}"


async def test_a_call_passes_a_point_before_it_is_sent_and_one_after_its_answer(serve: Serve) -> None:
    heard: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        heard.append("at the agent")
        return facts()

    def checkpoint(name: str) -> None:
        heard.append(name)
        if len(heard) in cut_at:
            raise ConnectionResetError("cut by the test")

    url, cut_at = await serve(handler), set[int]()
    async with AgentClient(url, "secret", checkpoint=checkpoint) as client:
        await client.host()
        assert heard == ["before GET /v1/host", "at the agent", "after GET /v1/host"]
        for cut, expected in ((1, heard[:1]), (3, heard[:3])):
            heard.clear()
            cut_at = {cut}
            with pytest.raises(AgentUnreachable, match="cut by the test"):
                await client.host()
            assert heard == expected
