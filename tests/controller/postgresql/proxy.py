"""A wire between the controller and PostgreSQL that breaks where a test says: before an order to commit, or after it.

It knows as much of the protocol as it takes to find the order: each message of a client is a letter, a length of four
bytes that counts itself, and that much; those before it has said who it is have no letter. ``Q`` is a statement as text
(PostgreSQL's "Frontend/Backend Protocol").
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Literal, Self

_COMMIT = b"COMMIT\0"
#: What a client may ask before it greets: whether the server encrypts, by TLS or by GSSAPI. Ours does not.
_QUESTIONS = {(1234 << 16 | number).to_bytes(4, "big") for number in (5679, 5680)}
#: Which half of a commit is lost.
Half = Literal["order", "answer"]


class Proxy:
    """Listens on a port of its own. A context manager."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.cuts: Half | None = None
        self.cut = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in [self._listener, *self._open]:
            _shut(one)

    def cut_next(self, half: Half) -> None:
        """Break the connection at the next commit: the order, or the answer, does not arrive."""
        self.cut.clear()
        self.cuts = half

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.server_port))
            except OSError:
                _shut(client)
                continue
            self._open += [client, server]
            for one in (client, server):  # a statement is several messages, and each would wait for an answer
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._orders, args=(client, server), daemon=True).start()
            threading.Thread(target=_pass_on, args=(server, client), daemon=True).start()

    def _orders(self, client: socket.socket, server: socket.socket) -> None:
        """Pass the client's messages on one by one."""
        with _ends(client, server):
            while (greeting := _message(client, b""))[4:8] in _QUESTIONS:
                server.sendall(greeting)
            server.sendall(greeting)
            while kind := client.recv(1):
                message = _message(client, kind)
                if self.cuts is not None and kind == b"Q" and message[5:] == _COMMIT:
                    half, self.cuts = self.cuts, None
                    self._break(half, client, server, message)
                    return
                server.sendall(message)

    def _break(self, half: Half, client: socket.socket, server: socket.socket, message: bytes) -> None:
        """Lose the order, or let it be carried out and lose the answer."""
        _shut(client)
        if half == "answer":
            server.sendall(message)
            server.shutdown(socket.SHUT_WR)
            while server.recv(4096):  # it ends when the server has done it and found us gone
                pass
        self.cut.set()


def _message(client: socket.socket, kind: bytes) -> bytes:
    length = _exactly(client, 4)
    return kind + length + _exactly(client, int.from_bytes(length, "big") - 4)


def _exactly(client: socket.socket, count: int) -> bytes:
    found = client.recv(count, socket.MSG_WAITALL)
    if len(found) < count:
        raise ConnectionResetError
    return found


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with _ends(target):
        while some := source.recv(65536):
            target.sendall(some)


@contextlib.contextmanager
def _ends(*sockets: socket.socket) -> Iterator[None]:
    """Pass on until either side has gone, which is how every connection ends, and shut these then."""
    try:
        with contextlib.suppress(OSError):
            yield
    finally:
        for one in sockets:
            _shut(one)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was faster
        one.shutdown(socket.SHUT_RDWR)
    one.close()
