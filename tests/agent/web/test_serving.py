"""Listeners: where they listen, who gets in, how they end."""

import asyncio
import os
import signal
import socket
import ssl
import stat
import subprocess
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from agent.web import serving
from agent.web.application import STOPPING, build
from agent.web.auth import root_on_unix_socket
from agent.web.call import Call
from agent.web.connections import Connections
from agent.web.errors import ListenRefused, SettingsError
from agent.web.routes import route
from agent.web.serving import Tls, listening, notify, parse_listen, tls_from, until_told_to_stop


async def who(call: Call) -> dict[str, str]:
    """Say who is calling."""
    return {"name": call.identity.name}


async def linger(call: Call) -> dict[str, str]:
    """Wait until the daemon stops."""
    await call.request.app[STOPPING].wait()
    return {"name": "stopped"}


@pytest.fixture
def app() -> web.Application:
    routes = [route("GET", "/who", who), route("GET", "/linger", linger)]
    return build(routes, title="T", version="1", authenticator=root_on_unix_socket)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=h -keyout {key} -out {cert}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    key.chmod(0o600)
    return Tls(cert, key)


@pytest.mark.case("X3")
@pytest.mark.parametrize("listen", ["0.0.0.0:0", "192.0.2.7:0", "[::]:0", "kvm1.example.org:0", "[::ffff:8.8.8.8]:0"])
async def test_an_address_that_others_reach_needs_tls(app: web.Application, listen: str) -> None:
    with pytest.raises(ListenRefused, match="set tls_cert and tls_key"):
        async with listening(app, listen=listen, tls=None, socket_path=None):
            pytest.fail("it listened")


@pytest.mark.case("X3")
async def test_with_tls_any_address_may_be_listened_on(app: web.Application, tls: Tls) -> None:
    async with (
        listening(app, listen="0.0.0.0:0", tls=tls, socket_path=None) as urls,
        aiohttp.ClientSession() as session,
    ):
        url = "https://127.0.0.1:" + urls[0].rpartition(":")[2]
        assert urls[0].startswith("https://")
        async with session.get(f"{url}/who", ssl=False) as response:
            assert response.status == 401


@pytest.mark.parametrize("listen", ["", "7701", "localhost", "localhost:", ":1", "a:65536", "a:-1", "a:\u0661"])
def test_a_malformed_address_is_refused(listen: str) -> None:
    with pytest.raises(ListenRefused):
        parse_listen(listen)


async def test_a_port_in_use_is_refused_by_name(app: web.Application) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ListenRefused, match="in use"):
            async with listening(app, listen=listen, tls=None, socket_path=None):
                pytest.fail("it listened")


async def test_a_name_needs_only_one_address_that_this_machine_has(
    app: web.Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    here, elsewhere = (socket.AF_INET, *stream, ("127.0.0.1", 0)), (socket.AF_INET, *stream, ("192.0.2.1", 0))
    unknown = (socket.AF_APPLETALK, *stream, ("::1", 0, 0, 0))  # as IPv6 where the kernel has none
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [unknown, elsewhere, here])
    async with (
        listening(app, listen="localhost:0", tls=None, socket_path=None) as urls,
        aiohttp.ClientSession() as http,
    ):
        answer = await http.get(urls[0].replace("localhost", "127.0.0.1") + "/healthz")
        assert answer.status == 401
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [unknown, elsewhere])
    with pytest.raises(ListenRefused, match="Cannot assign"):
        async with listening(app, listen="localhost:0", tls=None, socket_path=None):
            pytest.fail("it listened")


@pytest.mark.case("X1")
async def test_root_on_the_unix_socket_needs_no_token_and_a_tcp_peer_does(app: web.Application, tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    async with listening(app, listen="127.0.0.1:0", tls=None, socket_path=path) as urls:
        assert urls[1] == f"unix://{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
            answer = await (await session.get("http://agent/who")).json()
        assert answer == {"name": f"uid:{os.getuid()}"}
        async with aiohttp.ClientSession() as session:
            assert (await session.get(f"{urls[0]}/who")).status == 401
    assert not path.exists()


@pytest.mark.case("X1")
async def test_another_user_on_the_unix_socket_is_unknown(app: web.Application, tmp_path: Path) -> None:
    path = Path("/tmp") / f"cf-{os.getpid()}.sock"
    script = (
        f"import os,socket;os.setuid(65534);s=socket.socket(socket.AF_UNIX);s.connect({str(path)!r});"
        "s.sendall(b'GET /who HTTP/1.0\\r\\n\\r\\n');print(s.recv(100).split()[1].decode())"
    )
    async with listening(app, listen="", tls=None, socket_path=path):
        path.chmod(0o666)  # as if an administrator had opened it
        process = await asyncio.create_subprocess_exec("python3", "-c", script, stdout=subprocess.PIPE)
        output, _ = await process.communicate()
    assert output.strip() == b"401"


async def test_a_socket_left_by_a_dead_daemon_is_replaced_and_a_live_one_is_not(
    app: web.Application, tmp_path: Path
) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving.bind_unix(path, Connections()) as live:
        live.listen()
        with pytest.raises(ListenRefused, match="another daemon listens"):
            async with listening(app, listen="", tls=None, socket_path=path):
                pytest.fail("it listened")
        assert path.exists()


async def test_a_file_in_the_way_is_never_removed(app: web.Application, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("precious")
    with pytest.raises(ListenRefused, match="not a socket"):
        async with listening(app, listen="", tls=None, socket_path=path):
            pytest.fail("it listened")
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ListenRefused, match="107 bytes"):
        serving.bind_unix(tmp_path / ("x" * 108), Connections())


async def test_stopping_ends_a_long_poll_with_an_answer(app: web.Application, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        async with listening(app, listen="", tls=None, socket_path=path):
            waiting = asyncio.create_task(session.get("http://agent/linger"))
            await asyncio.sleep(0.05)
        assert await (await waiting).json() == {"name": "stopped"}


@pytest.mark.case("X5")
async def test_a_tls_key_that_anybody_may_read_is_refused(app: web.Application, tls: Tls) -> None:
    tls.key.chmod(0o604)
    try:
        with pytest.raises(SettingsError, match="chmod o="):
            serving.tls_context(tls)
    finally:
        tls.key.chmod(0o600)


def test_tls_needs_certificate_and_key_that_can_be_read(tls: Tls, tmp_path: Path) -> None:
    assert tls_from(None, None, None) is None
    with pytest.raises(SettingsError, match="needs both"):
        tls_from(tls.cert, None, None)
    with pytest.raises(SettingsError, match="cannot be used"):
        serving.tls_context(Tls(tmp_path / "none", tls.key))


def test_a_client_ca_makes_a_client_certificate_necessary(tls: Tls) -> None:
    assert serving.tls_context(Tls(tls.cert, tls.key, tls.cert)).verify_mode == ssl.CERT_REQUIRED
    assert serving.tls_context(tls).verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_wait(number: signal.Signals) -> None:
    waiting = asyncio.create_task(until_told_to_stop())
    await asyncio.sleep(0)
    os.kill(os.getpid(), number)
    assert await waiting == number.name


def test_readiness_is_told_to_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    for name, address in ((str(tmp_path / "n"), str(tmp_path / "n")), (f"@cf-{os.getpid()}", f"\0cf-{os.getpid()}")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(address)
            monkeypatch.setenv("NOTIFY_SOCKET", name)
            notify("READY=1")
            assert systemd.recv(100) == b"READY=1"
