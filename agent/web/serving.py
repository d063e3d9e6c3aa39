"""Listeners: TCP with or without TLS, a unix socket, a graceful end, and systemd's readiness protocol."""

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from agent.web.application import CONNECTIONS
from agent.web.connections import Connections, Door, share_of_process
from agent.web.errors import ListenRefused, SettingsError

#: How long answers under way may take after SIGTERM. Long polls end at once (application.STOPPING); a commit
#: takes seconds at most; systemd's own limit (90 s) must stay above this.
SHUTDOWN_TIMEOUT_S = 60.0
_BACKLOG = 128
_SOCKET_MODE = 0o600
#: sun_path of unix(7) holds 108 bytes with the final NUL.
_SOCKET_PATH_LIMIT_BYTES = 107
#: The address, or its whole family, is none of this machine's.
_NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


@dataclass(frozen=True)
class Tls:
    """Files of a TLS server. With ``client_ca`` only clients with a certificate from it get in."""

    cert: Path
    key: Path
    client_ca: Path | None = None


def tls_from(cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    """Return the TLS files of the settings ``tls_cert``, ``tls_key``, ``tls_client_ca``; None where TLS is off."""
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise SettingsError(where="tls_cert, tls_key", reason="TLS needs both")
    return Tls(cert, key, client_ca)


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Load the files. Raises SettingsError; a key that others can read is refused."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if tls.key.stat().st_mode & stat.S_IRWXO:
            raise SettingsError(where=tls.key, reason=f"anybody may use this key; run: chmod o= {tls.key}")
        # Without a password function OpenSSL would ask on the terminal and the daemon would hang.
        context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
        if tls.client_ca is not None:
            context.load_verify_locations(cafile=tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as err:  # ssl.SSLError too
        raise SettingsError(where=f"{tls.cert}, {tls.key}", reason=f"TLS files cannot be used: {err}") from err
    return context


def parse_listen(listen: str) -> tuple[str, int]:
    """Return host and port of ``127.0.0.1:7701`` or ``[::1]:7701``. Raises ListenRefused."""
    host, separator, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ListenRefused(listen=listen, reason="expected ADDRESS:PORT, for example 127.0.0.1:7701")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address. A name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_listen(listen: str, tls: Tls | None) -> tuple[str, int]:
    """Return host and port. Raises ListenRefused for an address others can reach while TLS is off."""
    host, port = parse_listen(listen)
    if tls is None and not is_loopback(host):
        raise ListenRefused(listen=listen, reason="other machines can reach this address; set tls_cert and tls_key")
    return host, port


@contextlib.asynccontextmanager
async def listening(
    app: web.Application, *, listen: str, tls: Tls | None, socket_path: Path | None
) -> AsyncIterator[list[str]]:
    """Serve the application; yields the URLs. An empty ``listen`` means no TCP. Everything is checked before.

    Port 0 takes a free port; the URL names it. A client that goes away does not cancel its handler: half a commit
    is worse than an answer that nobody reads. Each listener keeps its share of connections (agent.web.connections).
    """
    address = check_listen(listen, tls) if listen else None
    context = tls_context(tls) if tls else None
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S, handler_cancellation=False)
    await runner.setup()
    urls: list[str] = []
    bound = None
    try:
        if address is not None:
            doors = await _bind_tcp(app[CONNECTIONS], listen, address)
            for door in doors:
                await web.SockSite(runner, door, ssl_context=context, backlog=_BACKLOG).start()
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            urls.append(f"{'https' if context else 'http'}://{host}:{doors[0].getsockname()[1]}")
        if socket_path is not None:
            bound = bind_unix(socket_path, app[CONNECTIONS])
            await web.SockSite(runner, bound, backlog=_BACKLOG).start()
            urls.append(f"unix://{socket_path}")
        yield urls
    finally:
        await runner.cleanup()
        if bound is not None and socket_path is not None:
            _unlink(socket_path)


async def _bind_tcp(connections: Connections, listen: str, address: tuple[str, int]) -> list[Door]:
    """Return a bound socket for each address of a name that this machine has. Raises ListenRefused where it has none.

    ``localhost`` stands for ``::1`` too in many a hosts file, also where the kernel has no IPv6.
    """
    doors: list[Door] = []
    failure: OSError | None = None
    try:
        found = await asyncio.get_running_loop().getaddrinfo(*address, type=socket.SOCK_STREAM)
        for family, where in dict.fromkeys((one[0], one[4]) for one in found):
            try:
                doors.append(_bound(connections, family, where))
            except OSError as err:
                if err.errno not in _NOT_HERE:
                    raise
                failure = err
        if failure is not None and not doors:
            raise failure
    except OSError as err:
        for door in doors:
            door.close()
        raise ListenRefused(listen=listen, reason=err.strerror or str(err)) from err
    return doors


def _bound(connections: Connections, family: int, where: Any) -> Door:
    door = connections.door(family, share_of_process())
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # IPv4 has a socket of its own
            door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        door.bind(where)
        door.setblocking(False)
    except OSError:
        door.close()
        raise
    return door


def bind_unix(path: Path, connections: Connections) -> Door:
    """Return a socket bound at ``path`` that only its owner can connect to; a dead one in the way is replaced.

    Raises ListenRefused where something else is at the path, or somebody still listens there.
    """
    if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT_BYTES:
        raise ListenRefused(listen=path, reason=f"a socket's path has at most {_SOCKET_PATH_LIMIT_BYTES} bytes")
    _clear(path)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    bound = connections.door(socket.AF_UNIX, share_of_process())
    umask = os.umask(0o177)  # so that nobody can connect between bind and a chmod
    try:
        bound.bind(str(path))
    except OSError as err:
        bound.close()
        raise ListenRefused(listen=path, reason=err.strerror) from err
    finally:
        os.umask(umask)
    bound.setblocking(False)
    return bound


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenRefused(listen=path, reason="something that is not a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:  # nobody answers: left behind by a daemon that died
            path.unlink(missing_ok=True)
            return
    raise ListenRefused(listen=path, reason="another daemon listens there")


async def until_told_to_stop() -> str:
    """Wait for SIGTERM or SIGINT; return its name."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[str] = loop.create_future()

    def stop(name: str) -> None:
        if not told.done():
            told.set_result(name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    try:
        return await told
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def notify(state: str) -> None:
    """Tell systemd, for example ``READY=1``; see sd_notify(3). Nothing happens outside a notify unit."""
    name = os.environ.get("NOTIFY_SOCKET")
    if not name:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto(state.encode(), "\0" + name[1:] if name.startswith("@") else name)
