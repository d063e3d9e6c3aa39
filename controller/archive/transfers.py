"""Where a caller's stream and the operation that works on it meet.

An operation is a row that the engine hands out when its turn comes; the stream belongs to an HTTP call of this process.
A stream that does not come within ``PATIENCE_S`` will not: its call went away, or an earlier controller had it.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from controller.archive.unpack import Unpacking
from controller.errors import TransferBroken

T = TypeVar("T")

PATIENCE_S = 10.0
#: A caller that neither sends nor takes anything for so long is gone: it holds up the VM's other operations.
STALL_S = 120.0


class Sink(Protocol):
    """Where an archive goes."""

    async def write(self, piece: bytes) -> None:
        """Pass a piece on. Raises TransferBroken."""
        ...

    async def finish(self) -> None:
        """Say that it is whole. Raises TransferBroken."""
        ...


class Meeting(Generic[T]):
    """The streams that are offered, by operation. Used on the event loop's thread only."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._offers: dict[UUID, asyncio.Future[T]] = {}

    def offer(self, operation: UUID, stream: T) -> bool:
        """Offer the stream of an operation, to be withdrawn when that has ended; false where it has one already."""
        place = self._offer(operation)
        if not place.done():
            place.set_result(stream)
            return True
        return False

    def withdraw(self, operation: UUID) -> None:
        """Forget a stream."""
        self._offers.pop(operation, None)

    async def take(self, operation: UUID) -> T:
        """Return the stream of an operation. Raises TransferBroken where none comes."""
        try:
            async with asyncio.timeout(self._patience_s):
                return await asyncio.shield(self._offer(operation))
        except TimeoutError as err:
            self.withdraw(operation)
            raise TransferBroken(reason="the call that it belongs to is gone") from err

    def _offer(self, operation: UUID) -> asyncio.Future[T]:
        if operation not in self._offers:
            self._offers[operation] = asyncio.get_running_loop().create_future()
        return self._offers[operation]


class Streams:
    """All meetings of one engine: where exports write to, and what imports read from."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self.sinks: Meeting[Sink] = Meeting(patience_s)
        self.archives: Meeting[Unpacking] = Meeting(patience_s)


async def arriving(chunks: AsyncIterator[bytes], stall_s: float = STALL_S) -> AsyncIterator[bytes]:
    """Give a caller's body. Raises TransferBroken where it breaks off or stands still."""
    while True:
        try:
            async with asyncio.timeout(stall_s):
                chunk = await anext(chunks, b"")
        except TimeoutError as err:
            raise TransferBroken(reason=f"nothing came for {stall_s:.0f} s") from err
        except OSError as err:  # aiohttp's ClientConnectionError among them
            raise TransferBroken(reason="the connection broke") from err
        if not chunk:
            return
        yield chunk
