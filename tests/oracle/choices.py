"""How a random history chooses."""

import zlib
from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Choices:
    """Choices that hypothesis makes. It likes zeros, so the same draw means another choice each time it is made."""

    def __init__(self, data: st.DataObject, step: int) -> None:
        self._data, self._step, self._made = data, step, 0

    def number(self, below: int) -> int:
        """Choose a number from 0 on."""
        self._made += 1
        drawn = self._data.draw(st.integers(0, 9_999))
        return zlib.crc32(f"{drawn} {self._step} {self._made}".encode()) % below

    def one(self, of: list[T]) -> T:
        """Choose one of a list."""
        return of[self.number(len(of))]
