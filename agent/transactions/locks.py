"""The second guard: QEMU's own image locks and swtpm's state lock, held while a transaction works.

The hook fails open where it was deleted or cannot run; these locks are what a plain ``virsh start`` meets then. They
vanish with the agent, and a new agent takes them again in recovery.
"""

import logging
from pathlib import Path

from agent.errors import ImageInUse, ImageRefused
from agent.host import image_locks, tpm_lock
from agent.host.image_locks import ImageLock
from agent.host.tpm import StateLock
from agent.web.errors import Error

log = logging.getLogger(__name__)


class HeldLocks:
    """All locks of one transaction. Methods block for microseconds."""

    def __init__(self) -> None:
        self._images: dict[Path, ImageLock] = {}
        self._states: dict[Path, StateLock] = {}

    def take_image(self, target: str, path: Path) -> None:
        """Keep QEMU from writing to an image; ImageInUse where somebody does already."""
        if path not in self._images:
            self._images[path] = ImageLock.take(target, path)

    def take_to_write(self, target: str, path: Path) -> None:
        """Lock an image that our own qemu-img will write to; ImageInUse where somebody reads it, too."""
        self.take_image(target, path)
        if self._images[path].keeps_us_out():
            raise ImageInUse(target=target, path=str(path))

    def is_read(self, path: Path) -> bool:
        """Tell whether somebody reads an image that we hold: a VM runs on it or above it, perhaps unknown to us."""
        return path in self._images and self._images[path].keeps_us_out()

    def release_image(self, path: Path) -> bool:
        """Let go of one image, and tell whether it was held."""
        lock = self._images.pop(path, None)
        if lock is not None:
            lock.release()
        return lock is not None

    def lend_image(self, target: str, path: Path) -> bool:
        """Let go of one image for our own qemu-img, and tell whether it was held; see ``require_same``."""
        self.require_same(target, path)
        return self.release_image(path)

    def require_same(self, target: str, path: Path) -> None:
        """Raise ImageRefused where an image that is held has lost its name to another file since it was looked at."""
        if path in self._images and not self._images[path].has_name(path):
            reason = "another file has taken its name since it was looked at; neither was used"
            raise ImageRefused(target=target, path=str(path), reason=reason)

    def take_tpm(self, directory: Path) -> None:
        """Keep swtpm from opening a TPM state; a directory without one needs no lock."""
        if directory not in self._states:
            self._states[directory] = StateLock.take(directory)

    def retake(self, images: dict[str, Path]) -> None:
        """Take again, after a restart, the images that can be taken: the guard holds in any case."""
        for target, path in images.items():
            try:
                self.take_image(target, path)
            except Error as err:
                log.info("lock-not-retaken image=%s reason=%s", path, err)

    def release(self) -> None:
        """Let go of everything."""
        for image in self._images.values():
            image.release()
        for state in self._states.values():
            state.release()
        self._images.clear()
        self._states.clear()


class Looks(HeldLocks):
    """Looks whether the locks could be had, and takes none. With ``idle`` it does not even look.

    The files of a domain that runs are open, and those of one that is worked on are locked: that is told already.
    """

    def __init__(self, *, idle: bool) -> None:
        super().__init__()
        self._idle = idle

    def take_image(self, target: str, path: Path) -> None:
        """Raise ImageInUse where somebody writes to an image."""
        if not self._idle:
            image_locks.require_unwritten(target, path)

    def take_to_write(self, target: str, path: Path) -> None:
        """Raise ImageInUse where somebody reads an image, too, and lets nobody write."""
        if not self._idle:
            image_locks.require_unwritten(target, path, to_write=True)

    def take_tpm(self, directory: Path) -> None:
        """Raise HostFileInUse where an emulator has a TPM state open."""
        if not self._idle:
            tpm_lock.require_free(directory)
