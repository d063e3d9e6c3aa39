"""Waiting for something outside this process, with an end."""

import time
from collections.abc import Callable
from typing import TypeVar

from tests.lab.errors import LabError

T = TypeVar("T")


def wait_until(what: str, probe: Callable[[], T | None], timeout_s: float, every_s: float = 0.02) -> T:
    """Return the first answer of ``probe`` that is true; raises LabError naming ``what`` when time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        if answer := probe():
            return answer
        if time.monotonic() > deadline:
            raise LabError(f"{what} did not happen within {timeout_s} s")
        time.sleep(every_s)
