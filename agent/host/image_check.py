"""Looking at single image files: their headers always, their metadata through ``qemu-img check`` on request.

A frozen file may be part of the chain of a VM that runs: QEMU then holds it open for reading, which ``qemu-img check``
shares. It runs without ``-r``, so it writes nothing, and without ``-U``, so it refuses a file that is written to.
"""

import asyncio
import os
from pathlib import Path

import msgspec

from agent.errors import QemuImgFailed
from agent.host import images, qemu_img
from agent.web.errors import Error
from agent.wire.upkeep import ImageState


async def look(path: Path, allowed_dirs: list[Path], timeout_s: float, *, deep: bool) -> ImageState:
    """Return how one qcow2 image and what it stands on are; what is wrong with them is a result and not an error.

    Its chain is judged before QEMU sees it, since ``qemu-img check`` opens what the header names. Raises ToolTimeout
    after ``timeout_s``, ToolFailed, and QemuImgFailed where the check itself could not run.
    """
    state = await asyncio.to_thread(_header, path, allowed_dirs)
    if not deep or state.problem is not None:
        return state
    try:
        found = await qemu_img.check(path, timeout_s=timeout_s, within=allowed_dirs)
    except QemuImgFailed as err:
        if "lock" in str(err.facts.get("reason", "")):  # "Failed to get shared ... lock", util/osdep.c
            return msgspec.structs.replace(state, busy=True)
        raise
    return msgspec.structs.replace(state, errors=found.errors, leaked_clusters=found.leaked_clusters)


def _header(path: Path, allowed_dirs: list[Path]) -> ImageState:
    if not path.is_absolute() or "\0" in str(path):
        return ImageState(path=str(path), exists=False, problem="it is not an absolute path")
    try:
        top = images.read_chain(path.name, path, "qcow2", allowed_dirs, images.ANY_DEPTH)[0]
    except Error as err:
        return ImageState(path=str(path), exists=os.path.lexists(path), problem=str(err))
    return ImageState(
        path=str(path),
        exists=True,
        backing=top.backing,
        virtual_size_bytes=top.virtual_size_bytes,
        allocated_bytes=top.allocated_bytes,
        fingerprint=top.fingerprint,
    )
