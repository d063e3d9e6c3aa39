"""Files that are named as ours, found by looking through directories: overlays, and what work in progress puts aside.

Names decide what is looked at and nothing more: whose a file is, and whether it may go, the caller judges.
"""

import os
import re
import stat
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from uuid import UUID

from agent.errors import StorageFailed
from agent.host import dependents, files

#: A directory of images has tens of files, a cluster's may have thousands; each costs a read of its header.
ENTRIES_LIMIT = 50_000
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OVERLAY = re.compile(rf".+\.cf-({_UUID})\.[^.]+\.qcow2", re.DOTALL)
_STAGED = re.compile(re.escape(files.STAGE_PREFIX) + rf"({_UUID})-[0-9a-f]{{16}}")


@dataclass(frozen=True)
class Place:
    """A directory to look through, and how many levels below it."""

    directory: Path
    levels: int


@dataclass(frozen=True)
class Found:
    """One file or directory that is named as ours. ``transaction`` is in its name, where one is."""

    path: Path
    is_overlay: bool
    transaction: UUID | None
    size_bytes: int
    mtime: datetime


@dataclass
class Findings:
    """What a search brought. ``standing_on`` tells, for each image, the images that were met and stand on it."""

    found: list[Found] = field(default_factory=list)
    standing_on: dict[Path, list[str]] = field(default_factory=dict)
    complete: bool = True


def search(places: Iterable[Place], entries_limit: int = ENTRIES_LIMIT) -> Findings:
    """Look through the places, each directory once, links not followed; what cannot be read makes it incomplete."""
    findings = Findings()
    waiting = deque((Path(os.path.realpath(place.directory)), place.levels) for place in places)
    seen: set[Path] = set()
    left = entries_limit
    while waiting:
        directory, levels = waiting.popleft()
        if directory in seen:
            continue
        seen.add(directory)
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        findings.complete = False
                        return findings
                    path = Path(entry.path)
                    try:
                        inner = _take(findings, path)
                    except StorageFailed:
                        findings.complete = False
                        continue
                    if inner and levels > 0:
                        waiting.append((path, levels - 1))
        except FileNotFoundError:
            continue
        except OSError:
            findings.complete = False
    return findings


def _take(findings: Findings, path: Path) -> bool:
    """Note what one entry is; return whether it is a directory to look into. Raises StorageFailed."""
    try:
        facts = path.lstat()
    except OSError:  # gone since it was listed
        return False
    told = os.fsencode(path).decode(errors="backslashreplace")
    # What has no name that can be told is not ours: all of ours are UTF-8.
    staged = path.name.startswith(files.STAGE_PREFIX) and told == str(path)
    overlay = _OVERLAY.fullmatch(path.name) if told == str(path) else None
    regular = stat.S_ISREG(facts.st_mode)
    if staged or (overlay and regular):
        named = _STAGED.fullmatch(path.name) if staged else overlay
        transaction = UUID(named[1]) if named else None
        findings.found.append(Found(path, not staged, transaction, facts.st_size, files.changed_at(facts)))
    if regular and not staged and (backing := dependents.backing_of(path)) is not None:
        findings.standing_on.setdefault(backing, []).append(told)
    return stat.S_ISDIR(facts.st_mode) and not staged
