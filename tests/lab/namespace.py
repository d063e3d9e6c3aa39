"""A private corner of this machine: its own mounts, processes and, unless told otherwise, network and host name.

The namespaces belong to a holder process that lives exactly as long as a pipe from this process, so they vanish
with everything inside, whichever way this process ends. Commands are sent in through ``nsenter``.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGTERM, Signals
from types import TracebackType
from typing import IO

from tests.lab.errors import LabError
from tests.lab.waiting import wait_until

#: nsenter's options and the files below /proc/PID/ns that they take.
ENTER = {"mount": "mnt", "ipc": "ipc", "pid": "pid_for_children"}
ENTER_NETWORK = {"net": "net", "uts": "uts"}
UNSHARE = ("unshare", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")

#: Directories that a lab may replace as a whole. It cannot have its own root below one of them.
COVERED = ("/run", "/var/log", "/var/cache", "/dev", "/sys", "/proc")

#: Starts "$@" in the background with its output appended to $LOG, and prints its process id.
SPAWN = 'exec 3>&1 >>"$LAB_LOG" 2>&1 </dev/null; setsid "$@" 3>&- & echo $! >&3'


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("COLDFRAME_")}


class Process:
    """A process that ``Namespace.spawn`` started. ``pid`` is its number inside; it is no child of this process."""

    def __init__(self, namespace: "Namespace", pid: int, name: str, log: Path) -> None:
        self.namespace, self.pid, self.name, self.log = namespace, pid, name, log

    def send(self, number: Signals) -> None:
        """Send a signal; one that has ended already is left alone."""
        words = ["sh", "-c", 'kill -s "$1" "$2"', "sh", number.name.removeprefix("SIG"), str(self.pid)]
        self.namespace.run(words, check=False)

    def alive(self) -> bool:
        """Whether it still runs. A process that is stopped by SIGSTOP does."""
        return self.namespace.is_open and Path(f"/proc/{self.namespace.pid}/root/proc/{self.pid}").exists()

    def wait_gone(self, timeout_s: float = 20) -> None:
        """Wait for its end; raises LabError when it outlives the time."""
        wait_until(f"the end of {self.name} ({self.pid})", lambda: not self.alive(), timeout_s)

    def end(self, number: Signals = SIGTERM, timeout_s: float = 20) -> None:
        """Signal it, if it lives, and wait for its end."""
        if self.alive():
            self.send(number)
            self.wait_gone(timeout_s)


class Namespace:
    """One set of namespaces. A context manager; ``root`` keeps its files and is made if absent.

    ``binds`` maps a path as seen inside to the directory below ``root``, or an absolute one that others share, that
    takes its place; one inside another comes later. ``devices`` gives it a small /dev of its own, without /dev/kvm.
    With ``network=False`` it shares the machine's network and host name.
    With ``temporary`` the whole of ``root`` is removed in the end, also when this process is killed.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        binds: Mapping[str, str] | None = None,
        *,
        devices: bool = False,
        network: bool = True,
        temporary: bool = False,
    ) -> None:
        self.name = name
        self.root = root.resolve()
        self._binds = dict(binds or {})
        self._devices, self._network, self._temporary = devices, network, temporary
        self._holder: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Namespace":
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Make the namespaces and wait until their mounts stand; raises LabError when the machine refuses."""
        plan = self._plan()
        unshare = [*UNSHARE, *(("--net", "--uts") if self._network else ())]
        # A session of its own, so that Ctrl-C in a terminal reaches the test first and the host after it.
        self._holder = subprocess.Popen(
            [*unshare, sys.executable, "-I", "-S", str(Path(__file__).with_name("holder.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        stdin, stdout = self._pipes()
        stdin.write(json.dumps(plan) + "\n")
        stdin.flush()
        answer = stdout.readline().strip()
        if answer != "ready":
            self.close()
            raise LabError(f"private host {self.name} could not be made: {answer or 'unshare failed (not root?)'}")
        if self._network:
            try:
                self.run(["ip", "link", "set", "lo", "up"])
            except LabError:
                self.close()
                raise

    def _plan(self) -> dict[str, object]:
        """Make the directories that the holder will bind, and describe the host to it."""
        for covered in COVERED:
            if self.root.is_relative_to(covered):
                raise LabError(f"{self.root} lies below {covered}, which a private host covers; use another directory")
        scratch = self.root / ".mounts"
        scratch.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o711)  # QEMU's user passes through, and cannot list
        for below in self._binds.values():
            (self.root / below).mkdir(parents=True, exist_ok=True)
        return {
            "hostname": self.name if self._network else None,
            "scratch": str(scratch),
            "devices": self._devices,
            "sysfs": self._network,
            "remove": str(self.root) if self._temporary else None,
            "binds": [[str(self.root / below), target] for target, below in self._binds.items()],
        }

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self._holder is None or self._holder.stdin is None or self._holder.stdout is None:
            raise LabError(f"private host {self.name} is not running")
        return self._holder.stdin, self._holder.stdout

    def close(self) -> None:
        """End every process inside, and with them the namespaces and their mounts. Twice is fine."""
        if self._holder is None:
            return
        stdin, stdout = self._pipes()
        stdin.close()
        self._holder.wait(timeout=20)
        stdout.close()
        self._holder = None

    @property
    def is_open(self) -> bool:
        """Whether the namespaces stand."""
        return self._holder is not None and self._holder.poll() is None

    @property
    def pid(self) -> int:
        """The process, as seen from outside, that keeps the namespaces; raises LabError when they are closed."""
        if self._holder is None:
            raise LabError(f"private host {self.name} is not running")
        return self._holder.pid

    def path(self, inside: str | Path) -> Path:
        """Map an absolute path as seen inside to where this process finds it; other paths are the same in both."""
        wanted = Path(inside)
        for target in sorted(self._binds, key=len, reverse=True):
            if wanted.is_relative_to(target):
                return self.root / self._binds[target] / wanted.relative_to(target)
        return wanted

    def argv(self, argv: Sequence[str | Path], cwd: str | Path | None = None) -> list[str]:
        """Return the command line that runs ``argv`` inside; ``cwd`` is a path inside."""
        kinds = ENTER | (ENTER_NETWORK if self._network else {})
        enter = (f"--{option}=/proc/{self.pid}/ns/{kind}" for option, kind in kinds.items())
        return ["nsenter", *enter, "--", "env", "-C", str(cwd or "/"), *(str(word) for word in argv)]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        input: str = "",
        timeout_s: float = 60,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command inside and wait; raises LabError with its output unless it ends with 0 or ``check`` is off.

        ``env`` adds to this process's environment, of which nothing that configures Coldframe is passed on.
        """
        done = subprocess.run(
            self.argv(argv, cwd),
            input=input,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env={**_environment(), **(env or {})},
        )
        if check and done.returncode != 0:
            words = " ".join(str(word) for word in argv)
            raise LabError(f"{self.name}: {words}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def popen(self, argv: Sequence[str | Path], *, cwd: str | Path | None = None) -> subprocess.Popen[str]:
        """Start a command inside with pipes on its standard input, output and errors.

        What is returned is ``nsenter``: it ends with the command and its exit status, but a signal sent to it does
        not reach the command. For a daemon use ``spawn``.
        """
        return subprocess.Popen(
            self.argv(argv, cwd), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def log_path(self, name: str) -> Path:
        """Return the file that the output of the daemon ``name`` goes to."""
        return self.root / "logs" / f"{name}.log"

    def spawn(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a daemon that stays in the foreground; its output is appended to ``NAME.log`` below ``root/logs``.

        It becomes a child of the namespace's first process, so nothing of it can outlive the namespace.
        """
        log = self.log_path(name)
        log.parent.mkdir(exist_ok=True)
        started = self.run(["sh", "-c", SPAWN, "sh", *argv], cwd=cwd, env={**(env or {}), "LAB_LOG": str(log)})
        return Process(self, int(started.stdout), name, log)
