"""Images on their way between the controller and a transaction: out of an export, into an import."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

from agent.errors import ImageNotFound, ImageRefused
from agent.host import files, image_stream, paths
from agent.host.image_stream import NewImage
from agent.transactions import steps
from agent.transactions.archive_steps import ReceiveImage, SendImage
from agent.transactions.imports import check_image
from agent.transactions.manager import Manager
from agent.transactions.running import Running
from agent.transactions.standing import require_prepared
from agent.wire.archive import ReceivedImage, SentImage, SentImages


class Transfers:
    """What is under way. While images travel the transaction can be renewed, and aborted, which ends the transfer."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._receiving: set[str] = set()

    async def images(self, id_: UUID) -> SentImages:
        """List what a prepared export gives. Raises TransactionNotFound, TransactionEnded, StorageFailed."""
        running = self._manager.running(id_)
        require_prepared(running)
        return await asyncio.to_thread(lambda: SentImages(items=[_sent(one) for one in running.plan.send]))

    async def send(self, id_: UUID, target: str, position: int) -> tuple[int, AsyncIterator[bytes]]:
        """Return the size and the bytes of one image. Raises ImageNotFound, ImageRefused, TransactionEnded.

        They end early where the transaction does, or with StorageFailed.
        """
        running = self._manager.running(id_)
        require_prepared(running)
        for image in running.plan.send:
            if (image.target, image.position) == (target, position):
                await asyncio.to_thread(running.work.locks.require_same, target, Path(image.path))
                size = (await asyncio.to_thread(_sent, image)).size_bytes
                return size, _while_prepared(running, image, size)
        raise ImageNotFound(id=id_, target=target, position=position)

    async def receive(self, id_: UUID, target: str, position: int, chunks: AsyncIterator[bytes]) -> ReceivedImage:
        """Take in one image of an import whole; again replaces it.

        Raises ImageNotFound, TransactionEnded, ImageRefused (other bytes than were announced, or no image that can be
        used), QemuImgFailed, NoSpace, StorageFailed; then nothing is left of it.
        """
        running = self._manager.running(id_)
        require_prepared(running)
        step = awaited(running, target, position)
        if step.staged in self._receiving:
            raise _refused(step, "it is being received already")
        self._receiving.add(step.staged)
        try:
            await self._let_go(running, step)
            sha256 = await self._write(running, step, chunks)
            await check_image(step, running.work)  # without the lock: a lease is renewed meanwhile
            async with running.lock:
                require_prepared(running)
                await running.received(step)
        except BaseException:
            await self._let_go(running, step)
            raise
        finally:
            self._receiving.discard(step.staged)
        return ReceivedImage(target=target, position=position, size_bytes=step.size_bytes, sha256=sha256)

    async def _let_go(self, running: Running, step: ReceiveImage) -> None:
        """Have nothing of an image, as before it came."""
        running.here.discard(step.name)
        await steps.undo(step, running.work)

    async def _write(self, running: Running, step: ReceiveImage, chunks: AsyncIterator[bytes]) -> str:
        with await asyncio.to_thread(NewImage, Path(step.staged)) as image:
            async for piece in image_stream.pieces(chunks):
                require_prepared(running)
                if image.size_bytes + len(piece) > step.size_bytes:
                    raise _refused(step, f"more than the {step.size_bytes} bytes that were announced arrived")
                await asyncio.to_thread(image.write, piece)
            if image.size_bytes != step.size_bytes:
                raise _refused(step, f"{image.size_bytes} of the {step.size_bytes} bytes arrived")
            return await asyncio.to_thread(image.finish)


def _sent(image: SendImage) -> SentImage:
    path = Path(image.path)
    with files.storage("reading", path):
        size = paths.stat(path).st_size
    return SentImage(
        target=image.target,
        position=image.position,
        size_bytes=size,
        virtual_size_bytes=image.virtual_size_bytes,
    )


async def _while_prepared(running: Running, image: SendImage, size_bytes: int) -> AsyncIterator[bytes]:
    require_prepared(running)
    async for piece in image_stream.read(Path(image.path), image.target, size_bytes, image.named):
        require_prepared(running)
        yield piece


def awaited(running: Running, target: str, position: int) -> ReceiveImage:
    """Return the step that takes in one image. Raises ImageNotFound."""
    for step in running.plan.receive_images:
        if (step.target, step.position) == (target, position):
            return step
    raise ImageNotFound(id=running.transaction.id, target=target, position=position)


def _refused(step: ReceiveImage, reason: str) -> ImageRefused:
    return ImageRefused(target=step.target, path=f"image {step.position} of the archive", reason=reason)
