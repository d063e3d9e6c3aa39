"""The calls of the agent's client that carry whole disk images, as streams."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import aiohttp

from agent.wire.archive import ReceivedImage, SentImages

T = TypeVar("T")
_PIECE_BYTES = 1 << 20
_ANSWER_LIMIT_BYTES = 64 * 1024


class ArchiveCalls:
    """Part of AgentClient. A call that broke off has to begin again: nothing of it is kept."""

    if TYPE_CHECKING:

        def _answer(
            self, method: str, path: str, total_s: float | None, **arguments: Any
        ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]: ...
        async def _read(self, response: aiohttp.ClientResponse, limit_bytes: int) -> bytes: ...
        async def _get(self, path: str, kind: type[T], params: dict[str, str] | None = None) -> T: ...
        def _decode(self, raw: bytes, kind: type[T]) -> T: ...

    async def images(self, id: UUID) -> SentImages:
        """List the images that a prepared export gives."""
        return await self._get(f"/v1/transactions/{id}/images", SentImages)

    async def read_image(self, id: UUID, target: str, position: int) -> AsyncGenerator[bytes, None]:
        """Give the bytes of one image of a prepared export; however many were announced, the caller counts."""
        async with self._answer("GET", f"/v1/transactions/{id}/images/{target}/{position}", None) as response:
            async for piece in response.content.iter_chunked(_PIECE_BYTES):
                yield piece

    async def send_image(
        self, id: UUID, target: str, position: int, size_bytes: int, data: AsyncIterator[bytes]
    ) -> ReceivedImage:
        """Hand over one image of a prepared import. What ``data`` raises leaves the transaction without the image."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        path = f"/v1/transactions/{id}/images/{target}/{position}"
        async with self._answer("PUT", path, None, data=data, headers=headers) as response:
            raw = await self._read(response, _ANSWER_LIMIT_BYTES)
        return self._decode(raw, ReceivedImage)
