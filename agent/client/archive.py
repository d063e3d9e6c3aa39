"""The calls of the agent's client that carry whole disk images, as streams."""

from collections.abc import AsyncGenerator, AsyncIterator
from uuid import UUID

from agent.client.transport import Transport
from agent.wire.archive import ReceivedImage, SentImages

_PIECE_BYTES = 1 << 20
_ANSWER_LIMIT_BYTES = 64 * 1024


class ArchiveCalls(Transport):
    """Part of AgentClient. A call that broke off has to begin again: nothing of it is kept."""

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
