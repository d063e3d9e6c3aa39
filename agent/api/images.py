"""Images of portable archives: given by a prepared export, taken in by a prepared import."""

from uuid import UUID

from aiohttp import web

from agent.api.transactions import WORK
from agent.errors import ImageNotFound
from agent.transactions.foresight import Foresight
from agent.transactions.transfers import Transfers
from agent.web.call import Call
from agent.web.routes import BYTES, Route, route
from agent.wire.archive import ReceivedImage, SentImages
from agent.wire.plan import Plan

#: The announced size bounds an image, whatever its sender does; this is above any file system's largest file.
_LIMIT_BYTES = 1 << 62


class ImageRoutes:
    """What a controller does with the images of an archive."""

    def __init__(self, transfers: Transfers, foresight: Foresight) -> None:
        self._transfers = transfers
        self._foresight = foresight

    def routes(self) -> list[Route]:
        """Return the routes."""
        every = "/v1/transactions/{id}/images"
        one = f"{every}/{{target}}/{{position}}"
        return [
            route("GET", every, self.list, errors=WORK, role="admin"),
            route("GET", one, self.send, media_type=BYTES, errors=(*WORK, ImageNotFound), role="admin"),
            route(
                *("PUT", one, self.receive),
                raw_body=True,
                body_limit_bytes=_LIMIT_BYTES,
                errors=(*WORK, ImageNotFound),
                role="admin",
                planner=self.plan_receive,
            ),
        ]

    async def list(self, call: Call, id: UUID) -> SentImages:
        """List the images that a prepared export gives."""
        return await self._transfers.images(id)

    async def send(self, call: Call, id: UUID, target: str, position: int) -> web.StreamResponse:
        """Fetch one image of a prepared export; position 0 is the frozen file.

        An answer that is shorter than its `Content-Length` was cut short.
        """
        size, pieces = await self._transfers.send(id, target, position)
        response = web.StreamResponse(headers={"Content-Type": BYTES})
        response.content_length = size
        await response.prepare(call.request)
        async for piece in pieces:
            await response.write(piece)
        await response.write_eof()
        return response

    async def receive(self, call: Call, id: UUID, target: str, position: int) -> ReceivedImage:
        """Hand over one image of a prepared import, before commit. Once it is whole its header is judged."""
        return await self._transfers.receive(id, target, position, call.chunks())

    async def plan_receive(self, call: Call, id: UUID, target: str, position: int) -> Plan:
        """Plan ``receive``; the body is not read."""
        return self._foresight.receive_image(id, target, position)
