"""The start-up check that nobody else's ``agent`` is loaded.

``agent`` is a common name, and Python takes the first it finds: a directory of that name on PYTHONPATH, or another
distribution in a shared environment, would be loaded in place of ours.
"""

import sys
from importlib.util import find_spec
from pathlib import Path


def check() -> None:
    """Exit with a clear message unless the package ``agent`` stands beside this one. Loads nothing."""
    spec = find_spec("agent")
    ours = Path(__file__).resolve().parents[1]
    found = [Path(place).resolve().parent for place in (spec.submodule_search_locations or [])] if spec else []
    if found != [ours]:
        where = ", ".join(str(place / "agent") for place in found) or "nowhere"
        sys.exit(
            f"Coldframe's package 'agent' was looked for in {ours / 'agent'} and found in {where}. "
            "Nothing was started. Give Coldframe a virtual environment of its own, and unset PYTHONPATH"
        )
