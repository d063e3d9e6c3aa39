"""The project's own daemons: an agent inside a private host, a controller beside it, and the ``coldframe`` command."""

import contextlib
import hashlib
import http.client
import json
import secrets
import socket
import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from signal import SIGKILL, SIGTERM
from types import TracebackType
from typing import Any, Self

from tests.lab.errors import LabError
from tests.lab.host import LabHost
from tests.lab.namespace import Namespace, Process
from tests.lab.paths import IMAGES, NVRAM, PROJECT, PYTHON, STATE_DIR, SWTPM
from tests.lab.preloaded import Preloaded, environment
from tests.lab.waiting import wait_until


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket in place of a port."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def healthy(connection: http.client.HTTPConnection) -> bool:
    """Whether ``GET /healthz`` answers 200."""
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def toml(settings: Mapping[str, Any]) -> str:
    """Render a flat TOML file; JSON's strings, numbers, booleans and arrays are TOML's too."""
    return "".join(f"{key} = {json.dumps(value, default=str)}\n" for key, value in settings.items())


def write_secret(path: Path, secret: str) -> None:
    """Write a secret that only root may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(secret + "\n")


class Daemon:
    """One daemon in a namespace. A context manager that starts and stops it; settings may change between starts."""

    def __init__(
        self, name: str, namespace: Namespace, module: str, config_file: Path, settings: dict[str, Any]
    ) -> None:
        self.name, self.namespace, self.settings = name, namespace, settings
        self.module, self.config_file = module, config_file
        self.env: dict[str, str] = {}
        self.machine: tuple[Preloaded, ...] = ()  # what it is to believe of its machine, from the next start on
        self.process: Process | None = None
        self._log_from: int | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()  # __exit__ is not called for what fails here
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it for good; twice is fine."""
        self.stop()

    def connection(self, timeout_s: float = 10) -> http.client.HTTPConnection:
        """Return a new connection to it, unconnected."""
        raise NotImplementedError

    def command(self, *words: str) -> list[str | Path]:
        """Return the command line of one of the daemon's own commands, which run in ``namespace``."""
        return [PYTHON, "-m", self.module, *words, "--config", self.config_file]

    def run(self, *words: str, check: bool = True, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run one of the daemon's own commands, such as ``check`` or ``transactions``."""
        self.write_config()
        return self.namespace.run(self.command(*words), check=check, timeout_s=timeout_s, cwd=PROJECT, env=self.env)

    def write_config(self) -> None:
        """Write the settings in force at the next start."""
        path = self.namespace.path(self.config_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(toml(self.settings))

    def start(self, timeout_s: float = 30) -> None:
        """Start it and wait until it is healthy; raises LabError with its log when it ends instead."""
        self.launch()
        wait_until(f"a healthy {self.name}", self._healthy_or_raise, timeout_s, every_s=0.05)

    def launch(self) -> None:
        """Start it and wait for nothing."""
        if self.process is not None and self.process.alive():
            raise LabError(f"{self.name} runs already")
        self.write_config()
        if self._log_from is None:  # another daemon of that name may have written to the file before
            log = self.namespace.log_path(self.name)
            self._log_from = log.stat().st_size if log.exists() else 0
        env = self.env | environment(*self.machine)
        self.process = self.namespace.spawn(self.name, self.command("serve"), cwd=PROJECT, env=env)

    def _healthy_or_raise(self) -> bool:
        if self.process is None or not self.process.alive():
            raise LabError(f"{self.name} ended:\n{self.log()}")
        return healthy(self.connection())

    def log(self) -> str:
        """Return all that it wrote so far, over all its starts."""
        if self.process is None:
            return ""
        return self.process.log.read_bytes()[self._log_from :].decode(errors="replace")

    def stop(self, timeout_s: float = 30) -> None:
        """Ask it to end and wait; one that has ended already is fine."""
        self._end(SIGTERM, timeout_s)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(SIGKILL, 10)

    def wait_gone(self, timeout_s: float = 30) -> None:
        """Wait until it has ended by itself."""
        if self.process is not None:
            self.process.wait_gone(timeout_s)

    def _end(self, number: Any, timeout_s: float) -> None:
        if self.process is not None and self.process.alive():
            self.process.end(number, timeout_s)

    def restart(self) -> None:
        """Stop it, if it runs, and start it."""
        self.stop()
        self.start()


@dataclass(frozen=True)
class Certificate:
    """A certificate of its own for one daemon: paths as the daemon finds them, and what pins it."""

    cert: Path
    key: Path
    fingerprint: str

    @classmethod
    def make(cls, namespace: Namespace, directory: Path) -> "Certificate":
        """Make one below ``directory``, a path inside."""
        cert, key = directory / "daemon.crt", directory / "daemon.key"
        words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=lab -keyout {} -out {}"
        namespace.run(words.format(key, cert).split())
        namespace.path(key).chmod(0o600)
        der = ssl.PEM_cert_to_DER_cert(namespace.path(cert).read_text())
        return cls(cert, key, hashlib.sha256(der).hexdigest())


class AgentDaemon(Daemon):
    """``python -m agent serve`` in a private host. Keywords override or add settings of agent.toml."""

    def __init__(self, host: LabHost, **settings: Any) -> None:
        defaults = {
            "listen": "127.0.0.1:7701",
            "socket": "/run/coldframe/agent.sock",
            "libvirt_uri": "qemu:///system",
            "state_dir": STATE_DIR,
            "allowed_image_dirs": [str(IMAGES)],
            "nvram_dir": NVRAM,
            "swtpm_dir": SWTPM,
            "hook_dir": "/etc/libvirt/hooks",
            "token_file": "/etc/coldframe/agent.token",
        }
        super().__init__(f"agent-{host.name}", host, "agent", Path("/etc/coldframe/agent.toml"), defaults | settings)
        self.host = host
        self.token = secrets.token_urlsafe(32)
        write_secret(self.token_file, self.token)
        host.path(self.settings["socket"]).parent.mkdir(parents=True, exist_ok=True)

    @property
    def token_file(self) -> Path:
        """The file with the agent's secret, as this process finds it."""
        return self.host.path(self.settings["token_file"])

    @property
    def socket_path(self) -> Path:
        """The agent's unix socket, as this process finds it."""
        return self.host.path(self.settings["socket"])

    @property
    def url(self) -> str:
        """The agent's URL for a controller on this machine, in whatever namespace."""
        return f"unix://{self.socket_path}"

    @property
    def state_dir(self) -> Path:
        """The agent's state directory, as this process finds it."""
        return self.host.path(self.settings["state_dir"])

    def connection(self, timeout_s: float = 10) -> http.client.HTTPConnection:
        """Return a new connection over the unix socket."""
        return UnixConnection(self.socket_path, timeout_s)


class ControllerDaemon(Daemon):
    """``python -m controller serve`` on a loopback port, its files below ``root``.

    Without ``namespace`` it shares the machine's network, so that this process reaches it, and still dies with this
    process. With one, such as a host, it is reached from inside only: through ``coldframe`` or ``namespace.run``.
    """

    def __init__(self, root: Path, namespace: Namespace | None = None, **settings: Any) -> None:
        self.root = root.resolve()
        self._own = None if namespace else Namespace("controller", self.root / "ns", network=False)
        defaults = {
            "listen": f"127.0.0.1:{7700 if namespace else free_port()}",
            "database": f"sqlite:///{self.root}/controller.db",
        }
        inside = namespace or self._own
        assert inside is not None
        super().__init__("controller", inside, "controller", self.root / "controller.toml", defaults | settings)
        self.root.mkdir(parents=True, exist_ok=True)
        self.token_file = self.root / "admin.token"

    def close(self) -> None:
        """End it for good, with its own namespace."""
        with contextlib.suppress(LabError):
            self.stop()
        if self._own is not None:
            self._own.close()

    @property
    def url(self) -> str:
        """The controller's URL within its network."""
        return f"http://{self.settings['listen']}"

    @property
    def token(self) -> str:
        """The admin token that was made before the first start."""
        return self.token_file.read_text().strip()

    def launch(self) -> None:
        """Make the first admin token, once, and start it."""
        if self._own is not None and not self._own.is_open:
            self._own.open()
        if not self.token_file.exists():
            write_secret(self.token_file, self.create_token("admin"))
        super().launch()

    def create_token(self, role: str) -> str:
        """Make a token of a role and return its secret."""
        return self.run("token", "create", "--role", role).stdout.strip()

    def connection(self, timeout_s: float = 10) -> http.client.HTTPConnection:
        """Return a new connection to the port; it works where this process shares the controller's network."""
        host, _, port = str(self.settings["listen"]).rpartition(":")
        return http.client.HTTPConnection(host, int(port), timeout=timeout_s)

    def _healthy_or_raise(self) -> bool:
        if self._own is not None:
            return super()._healthy_or_raise()
        if self.process is None or not self.process.alive():
            raise LabError(f"{self.name} ended:\n{self.log()}")
        ask = f"import urllib.request as r; r.urlopen('{self.url}/healthz', timeout=5)"
        return self.namespace.run([PYTHON, "-I", "-c", ask], check=False).returncode == 0

    def coldframe(
        self, *words: str | Path, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run the operator's command as admin; raises LabError with its output unless it ends with 0."""
        env = {"COLDFRAME_URL": self.url, "COLDFRAME_TOKEN_FILE": str(self.token_file)}
        command = PYTHON.with_name("coldframe")
        return self.namespace.run([command, *words], check=check, timeout_s=timeout_s, cwd=PROJECT, env=env)

    def json(self, *words: str | Path, timeout_s: float = 120) -> Any:
        """Run ``coldframe … --json`` and return the document it prints."""
        return json.loads(self.coldframe(*words, "--json", timeout_s=timeout_s).stdout)

    def get(self, path: str, timeout_s: float = 60) -> Any:
        """Read from the API as ``ask`` does; return the document."""
        return json.loads(self.ask("GET", path, timeout_s=timeout_s)[1])

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Call the API as admin, where this process shares its network: much cheaper than the command.

        Raises OSError or HTTPException where it does not answer, LabError with its answer where it refuses.
        """
        given = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **(headers or {})}
        with contextlib.closing(self.connection(timeout_s)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), given)
            answer = connection.getresponse()
            data = answer.read()
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise LabError(f"{method} {path}: {answer.status} {data!r}")
        return answer, data

    def add_host(self, agent: AgentDaemon) -> None:
        """Enrol an agent under its host's name, through its unix socket."""
        self.coldframe("host", "add", agent.host.name, agent.url, "--agent-token-file", agent.token_file)


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
