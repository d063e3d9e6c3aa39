"""Runs spin on the model: generate the verifier, compile it, let it visit every state within the bounds."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).with_name("coldframe.pml")
_VIOLATED = re.compile(r"assertion violated \((\w+)\|\|")
_CYCLE = "acceptance cycle"


@dataclass(frozen=True)
class Run:
    """What one run found: states visited, the longest path, and the invariant that was violated, if one was."""

    states: int
    depth: int
    violated: str | None


def check(directory: Path, *defines: str, claim: str | None = None, optimise: bool = False) -> Run:
    """Visit every state of the model with these bounds (``NETWORK=1``) and mutations (``UNFENCED``).

    ``claim`` is the name of an ltl formula to check besides. ``optimise`` pays for a million states and more: the
    compiler then takes five times as long. A run that does not visit everything is an error, not a result.
    """
    flags = [f"-D{define}" for define in defines]
    _call(directory, "spin", "-a", *flags, str(MODEL))
    mode = ["-DSAFETY", "-DNOCLAIM"] if claim is None else []
    _call(
        directory, "gcc", "-O1" if optimise else "-O0", "-w", "-DCOLLAPSE", "-DMEMLIM=3000", *mode, "-o", "pan", "pan.c"
    )
    told = _call(directory, "./pan", "-E", "-m200000", *([] if claim is None else ["-a", "-N", claim]))
    broken = _VIOLATED.search(told)
    violated = broken[1] if broken else claim if _CYCLE in told.split("Full statespace")[0] else None
    assert (violated is None) == ("errors: 0" in told), told
    assert "max search depth too small" not in told, told
    assert "Search not completed" not in told or violated is not None, told
    return Run(
        states=_number(r"(\d+) states, stored", told), depth=_number(r"depth reached (\d+)", told), violated=violated
    )


def _number(pattern: str, told: str) -> int:
    found = re.search(pattern, told)
    assert found is not None, told
    return int(found[1])


def _call(directory: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
