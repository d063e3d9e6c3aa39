"""The UEFI shell of a guest, over its serial console."""

import re
import socket
import time
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.waiting import wait_until

#: Colours, cursor moves and modes of the terminal that OVMF draws on.
ESCAPE = re.compile(r"\x1b\[[0-9;=?]*[A-Za-z]")
#: The shell's prompt is drawn yellow and followed by a return to plain white on black, unlike any echo of it.
PROMPT = re.compile(r"(?:Shell|FS\d+:[^>\r\n\x1b]*)> ?\x1b\[0m\x1b\[37m\x1b\[40m$")
COUNTDOWN = re.compile(r"in \d+ seconds? to skip")


class Console:
    """One guest's serial console, reached through a unix socket that QEMU holds. It connects when first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._seen = ""

    def connect(self, timeout_s: float = 10) -> None:
        """Connect afresh. What the guest says while nobody is connected is lost, but for the log that libvirt keeps."""
        self.close()
        self._socket = wait_until(f"the console {self._path}", self._try_connect, timeout_s)

    def _try_connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            return None
        return connection

    def close(self) -> None:
        """Disconnect. Twice is fine."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._seen = None, ""

    def send(self, text: str) -> None:
        """Type ``text`` as it is."""
        if self._socket is None:
            self.connect()
        assert self._socket is not None
        self._socket.sendall(text.encode("ascii"))

    def expect(self, pattern: re.Pattern[str], timeout_s: float) -> str:
        """Read until ``pattern`` is found; returns and consumes what was read. Raises LabError in the end."""
        if self._socket is None:
            self.connect()
        assert self._socket is not None
        deadline = time.monotonic() + timeout_s
        while not pattern.search(self._seen):
            left = deadline - time.monotonic()
            if left <= 0:
                raise LabError(f"the console did not show {pattern.pattern!r} in {timeout_s} s:\n{plain(self._seen)}")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise LabError(f"the guest ended before it showed {pattern.pattern!r}:\n{plain(self._seen)}")
            self._seen += data.decode("latin-1")
        seen, self._seen = self._seen, ""
        return seen

    def wait_shell(self, timeout_s: float = 90) -> str:
        """Wait for the shell's first prompt; a ``startup.nsh`` on a disk is run. Returns what was shown."""
        seen = self.expect(re.compile(f"{COUNTDOWN.pattern}|{PROMPT.pattern}"), timeout_s)
        if PROMPT.search(seen):
            return plain(seen)
        # Any key but ESC ends the five seconds; after ESC the terminal waits two more for a sequence.
        self.send(" ")
        return plain(seen + self.expect(PROMPT, timeout_s))

    def command(self, line: str, timeout_s: float = 30) -> str:
        """Type one command at the prompt and return what it showed, without echo and next prompt."""
        self.send(line + "\r")
        text = plain(self.expect(PROMPT, timeout_s))
        return without_echo(text, line).rpartition("\n")[0].strip("\n")


def plain(text: str) -> str:
    """Return terminal output without escape sequences, lines ended by a newline alone."""
    return ESCAPE.sub("", text).replace("\r", "")


def without_echo(text: str, line: str) -> str:
    """Return what follows the echo of ``line``, which may be broken anywhere by the edge of the screen."""
    position = 0
    for character in line.replace(" ", ""):
        position = text.find(character, position) + 1
        if position == 0:
            return text
    return text[position:]
