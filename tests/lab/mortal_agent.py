"""An agent that dies where a test says: ``python -m tests.lab.mortal_agent serve --config FILE``.

It is the agent itself with another checkpoint. ``MORTAL_AGENT_POINTS`` names a file that gets a line for each point
passed; ``MORTAL_AGENT_DIES_AT`` names the point at which the process kills itself with SIGKILL, and
``MORTAL_AGENT_STOPS_AT`` the one at which it stops itself with SIGSTOP, once.
"""

import os
import signal
import sys
from pathlib import Path

from agent import app, config
from agent.web import log, out_of_memory
from tests.lab import preloaded
from tests.lab.daemons import AgentDaemon
from tests.lab.host import LabHost

POINTS, DIES_AT, STOPS_AT = (f"MORTAL_AGENT_{what}" for what in ("POINTS", "DIES_AT", "STOPS_AT"))


class MortalAgent(AgentDaemon):
    """The daemon in a private host; say where it dies before each start."""

    def __init__(self, host: LabHost) -> None:
        super().__init__(host)
        self.module = "tests.lab.mortal_agent"
        self.points_file = host.path("/run/points")

    def dies_at(self, name: str | None) -> None:
        """Set where the next process dies, and forget which points were passed."""
        self.points_file.write_text("")
        self.env = {POINTS: "/run/points"} | ({DIES_AT: name} if name else {})

    def stops_at(self, name: str) -> None:
        """Set where the next process stops, and forget which points were passed."""
        self.dies_at(None)
        self.env[STOPS_AT] = name

    def points(self) -> list[str]:
        """List the points passed since the last start."""
        return self.points_file.read_text().splitlines()


def checkpoint(name: str) -> None:
    """Note the point, and die at the chosen one."""
    if POINTS in os.environ:
        with Path(os.environ[POINTS]).open("a") as file:
            file.write(f"{name}\n")
    preloaded.passed(name)
    if os.environ.get(DIES_AT) == name:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get(STOPS_AT) == name:
        del os.environ[STOPS_AT]
        os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    loaded = config.load(Path(sys.argv[sys.argv.index("--config") + 1]), os.environ, {})
    log.configure(loaded.settings.log_level)
    out_of_memory.run(app.serve(loaded.settings, checkpoint))
