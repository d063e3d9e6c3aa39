"""Several private hosts with one image directory between them, and a controller that reaches each by its own cable.

::

    with Fleet() as fleet:                       # the hosts a and b
        guest = fleet.a.host.define_guest("win11")
        fleet.controller.coldframe("vm", "place", "win11", "b")
        fleet.a.cable.cut()

The agents serve TLS, as they do wherever controller and host are two machines.
"""

import json
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.daemons import AgentDaemon, Certificate, ControllerDaemon
from tests.lab.host import LabHost
from tests.lab.namespace import Namespace
from tests.lab.network import Link, in_network, link
from tests.lab.paths import STATE_DIR

#: How fast the controller of a fleet looks again at a host that did not answer.
RETRY_MAX_S = 0.5


@dataclass(frozen=True)
class Member:
    """One host with its agent; ``cable.a`` is the controller's end."""

    host: LabHost
    agent: AgentDaemon
    certificate: Certificate
    cable: Link

    @property
    def name(self) -> str:
        """The name that it is enrolled under."""
        return self.host.name

    @property
    def url(self) -> str:
        """Where its agent listens now."""
        return f"https://{self.cable.b.address}:7701"


class Fleet:
    """Two hosts ``a`` and ``b``, and the controller. A context manager; all is up and enrolled inside the block."""

    a: Member
    b: Member
    controller: ControllerDaemon

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._stack.close()  # __exit__ is not called for what fails here
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def get(self, path: str) -> Any:
        """Read from the controller's API: much quicker than a command, for what is looked at again and again."""
        return json.loads(self._read(path))

    def events(self) -> list[dict[str, Any]]:
        """Read the controller's whole event log."""
        lines = self._read("/v1/events?after=0&follow=false").decode().splitlines()
        return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]

    def _read(self, path: str) -> bytes:
        def ask(_: object) -> bytes:
            connection = self.controller.connection()
            try:
                connection.request("GET", path, headers={"Authorization": f"Bearer {self.controller.token}"})
                return connection.getresponse().read()
            finally:
                connection.close()

        return in_network(self.controller.namespace.pid, ask)

    def _open(self) -> None:
        root = Path(tempfile.mkdtemp(prefix="cf-", dir="/tmp"))
        self._stack.callback(shutil.rmtree, root, ignore_errors=True)
        root.chmod(0o711)  # QEMU's user passes through
        control = self._stack.enter_context(Namespace("control", root / "ns"))
        (root / "images").mkdir()
        self.controller = ControllerDaemon(root / "controller", control, retry_max_s=RETRY_MAX_S)
        self._stack.enter_context(self.controller)
        self.a = self._member("a", root / "images", "10.77.1")
        self.b = self._member("b", root / "images", "10.77.2")

    def _member(self, name: str, images: Path, network: str) -> Member:
        host = self._stack.enter_context(LabHost(name, images=images))
        cable = link(self.controller.namespace, host, f"{network}.1/24", f"{network}.2/24")
        certificate = Certificate.make(host, STATE_DIR.parent)
        agent = AgentDaemon(host, listen="0.0.0.0:7701", tls_cert=certificate.cert, tls_key=certificate.key)
        member = Member(host, self._stack.enter_context(agent), certificate, cable)
        words = ["host", "add", name, member.url, "--fingerprint", certificate.fingerprint]
        self.controller.coldframe(*words, "--agent-token-file", agent.token_file)
        return member
