"""Room on file systems: looked at before a plan, and required by it."""

from collections.abc import Iterable
from pathlib import Path

from agent.errors import NoSpace
from agent.host import files
from agent.transactions.model import Room


def look_for_room(directories: Iterable[Path]) -> Room:
    """Look at what is free where. A directory that will yet be made takes its room where the nearest above it is."""
    present = {directory: files.nearest_directory(directory) for directory in directories}
    return Room(
        free_bytes={directory: files.free_bytes(found) for directory, found in present.items()},
        device={directory: found.stat().st_dev for directory, found in present.items()},
    )


def require_room(wanted: list[tuple[Path, int]], room: Room, reserve_bytes: int = 0) -> None:
    """Raise NoSpace where a file system has less than what is to be written below its directories, and the reserve."""
    need: dict[int, int] = {}
    where: dict[int, Path] = {}
    for directory, size in wanted:
        device = room.device[directory]
        need[device] = need.get(device, reserve_bytes) + size
        where[device] = directory
    for device, need_bytes in need.items():
        have_bytes = room.free_bytes[where[device]]
        if have_bytes < need_bytes:
            raise NoSpace(path=str(where[device]), have_bytes=have_bytes, need_bytes=need_bytes)
