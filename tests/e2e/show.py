"""What the demos share: commands as one would type them, what they said, and checks that could have failed."""

import hashlib
import subprocess
import sys
from collections.abc import Callable

from tests.lab import requirements
from tests.lab.errors import LabError
from tests.lab.guest import Guest


class Failed(Exception):
    """A check did not hold."""


class Show:
    """Prints the story and counts the checks."""

    def __init__(self) -> None:
        self.checks = 0

    def title(self, text: str) -> None:
        """Begin a chapter."""
        self._print(f"\n== {text}")

    def command(self, text: str) -> None:
        """Show a command before it runs."""
        self._print(f"$ {text}")

    def guest(self, text: str) -> None:
        """Show a line typed into the UEFI shell."""
        self._print(f"Shell> {text}")

    def aside(self, text: str) -> None:
        """Say what happens by other means than a command one would type."""
        self._print(f"# {text}")

    def output(self, text: str) -> None:
        """Show what a command said."""
        for line in text.rstrip("\n").splitlines():
            self._print(f"  {line}")

    def check(self, text: str, *, holds: bool, found: object = None) -> None:
        """Count a check that holds; raises Failed for one that does not."""
        if not holds:
            raise Failed(f"{text}; found: {found}")
        self.checks += 1
        self._print(f"✓ {text}")

    def _print(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def fingerprints(guest: Guest) -> dict[str, str]:
    """Return a hash of everything that a VM with two disks can see while it is off."""
    state = sorted(guest.host.path(guest.tpm_dir).glob("*.permall"))
    return {
        "disk vda": guest.disk("vda").sha256(),
        "disk vdb": guest.disk("vdb").sha256(),
        "NVRAM": hashlib.sha256(guest.host.path(guest.nvram).read_bytes()).hexdigest(),
        "TPM": hashlib.sha256(b"".join(path.read_bytes() for path in state)).hexdigest(),
    }


def perform(name: str, story: Callable[[Show], None]) -> int:
    """Tell a story and return the exit status: 0, or 1 with the first check that failed."""
    missing = requirements.missing()
    if missing:
        sys.stderr.write(f"{name}: a private libvirt host cannot be made here:\n" + "\n".join(missing) + "\n")
        return 1
    show = Show()
    try:
        story(show)
    except (Failed, LabError, subprocess.TimeoutExpired) as err:
        sys.stderr.write(f"✗ {err}\n{name}: FAILED after {show.checks} checks\n")
        return 1
    sys.stdout.write(f"\n{name}: {show.checks} checks passed\n")
    return 0
