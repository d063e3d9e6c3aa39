"""A controller that dies where a test says: ``python -m tests.lab.mortal_controller serve --config FILE``.

It is the controller itself with another checkpoint. ``MORTAL_CONTROLLER_POINTS`` names a file that gets a line for each
point passed, ``MORTAL_CONTROLLER_DIES_AT`` the point at which the process kills itself with SIGKILL, and
``MORTAL_CONTROLLER_STOPS_AT`` the one at which it stops itself with SIGSTOP.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from agent.web import log
from controller import app, config
from tests.lab.daemons import ControllerDaemon
from tests.lab.paths import PYTHON
from tests.points import named

POINTS, DIES_AT, STOPS_AT = (f"MORTAL_CONTROLLER_{what}" for what in ("POINTS", "DIES_AT", "STOPS_AT"))


class MortalController(ControllerDaemon):
    """The daemon; say where it dies before each start."""

    @property
    def points_file(self) -> Path:
        """The file with the points passed since the last start."""
        return self.root / "points"

    def command(self, *words: str) -> list[str | Path]:
        """Return the command line: the daemon is the mortal one, its other commands are the controller's own."""
        if words[:1] != ("serve",):
            return super().command(*words)
        return [PYTHON, "-m", "tests.lab.mortal_controller", *words, "--config", self.config_file]

    def strikes_at(self, dies: str | None = None, stops: str | None = None) -> None:
        """Set where the next process dies or stops, and forget which points were passed."""
        self.points_file.write_text("")
        chosen = {DIES_AT: dies, STOPS_AT: stops}
        self.env = {POINTS: str(self.points_file)} | {key: name for key, name in chosen.items() if name is not None}

    def points(self) -> list[str]:
        """List the points passed since the last start."""
        return self.points_file.read_text().splitlines()


def checkpoint(point: str) -> None:
    """Note the point, and strike at the chosen one."""
    name = named(point)
    with Path(os.environ[POINTS]).open("a") as file:
        file.write(f"{name}\n")
    if os.environ.get(DIES_AT) == name:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get(STOPS_AT) == name:
        del os.environ[STOPS_AT]
        os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    loaded = config.load(Path(sys.argv[sys.argv.index("--config") + 1]), os.environ, {})
    log.configure(loaded.settings.log_level)
    asyncio.run(app.serve(loaded.settings, checkpoint))
