"""A controller that dies where a test says: ``python -m tests.lab.mortal_controller serve --config FILE``.

It is the controller itself with another checkpoint. ``MORTAL_CONTROLLER_POINTS`` names a file: while it is there it
gets a line, ``name #number``, for each point passed. ``MORTAL_CONTROLLER_DIES_AT`` is the one at which the process
kills itself with SIGKILL, and ``MORTAL_CONTROLLER_STOPS_AT`` the one at which it stops itself with SIGSTOP. Neither
happens before the file is there, so that a start is survived.
"""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

from agent.web import log, out_of_memory
from controller import app, config
from tests.lab import preloaded
from tests.lab.daemons import ControllerDaemon
from tests.lab.paths import PYTHON
from tests.points import named

POINTS, DIES_AT, STOPS_AT = (f"MORTAL_CONTROLLER_{what}" for what in ("POINTS", "DIES_AT", "STOPS_AT"))


class MortalController(ControllerDaemon):
    """The daemon; say where it dies before each start."""

    @property
    def points_file(self) -> Path:
        """The file with the points passed since it was armed."""
        return self.root / "points"

    def command(self, *words: str) -> list[str | Path]:
        """Return the command line: the daemon is the mortal one, its other commands are the controller's own."""
        if words[:1] != ("serve",):
            return super().command(*words)
        return [PYTHON, "-m", "tests.lab.mortal_controller", *words, "--config", self.config_file]

    def strikes_at(self, dies: str | None = None, stops: str | None = None) -> None:
        """Set where the next process dies or stops once it is armed, and forget which points were passed."""
        self.points_file.unlink(missing_ok=True)
        chosen = {DIES_AT: dies, STOPS_AT: stops}
        self.env = {POINTS: str(self.points_file)} | {key: name for key, name in chosen.items() if name is not None}

    def arm(self) -> None:
        """Count points and strike from now on."""
        self.points_file.touch()

    def points(self) -> list[str]:
        """List the points passed since it was armed, as ``name #number``."""
        return self.points_file.read_text().splitlines()


_passed: Counter[str] = Counter()


def checkpoint(point: str) -> None:
    """Note the point, and strike at the chosen one."""
    file = Path(os.environ[POINTS])
    if not file.exists():
        return
    name = named(point)
    preloaded.passed(name)
    _passed[name] += 1
    key = f"{name} #{_passed[name]}"
    with file.open("a") as lines:
        lines.write(f"{key}\n")
    if os.environ.get(DIES_AT) == key:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get(STOPS_AT) == key:
        os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    loaded = config.load(Path(sys.argv[sys.argv.index("--config") + 1]), os.environ, {})
    log.configure(loaded.settings.log_level)
    out_of_memory.run(app.serve(loaded.settings, checkpoint))
