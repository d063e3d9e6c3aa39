"""Connections to another daemon: how they are made, and what to say when there is none."""

import os
import socket

import aiohttp
from aiohttp.client_exceptions import UnixClientConnectorError


def watched_socket(address: aiohttp.AddrInfoType) -> socket.socket:
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


def reason_of(err: Exception) -> str:
    """Say why there was no answer; aiohttp's own text for a failed connection speaks of TLS where there is none."""
    if isinstance(err, aiohttp.ClientSSLError) or not isinstance(err, aiohttp.ClientConnectorError):
        return str(err) or type(err).__name__
    where = err.path if isinstance(err, UnixClientConnectorError) else f"{err.host}:{err.port}"
    number = err.os_error.errno or 0
    # getaddrinfo's own numbers are negative; asyncio's text for a refused connection names the address once more.
    return f"{where}: {os.strerror(number) if number > 0 else err.os_error.strerror or err.os_error}"
