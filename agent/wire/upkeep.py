"""What an agent says of image files and of what was left behind: read by verification and by ``doctor``."""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec

from agent.wire.base import Answer, Request

#: What one call may ask for; more are asked for in several calls.
PATHS_LIMIT = 1000


class CheckImages(Request, kw_only=True, frozen=True):
    """The body of ``POST /v1/images/check``. ``deep`` runs ``qemu-img check``, ``timeout_s`` bounds it all."""

    paths: Annotated[list[str], msgspec.Meta(min_length=1, max_length=PATHS_LIMIT)]
    deep: bool = False
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 600.0

    @classmethod
    def example(cls) -> "CheckImages":
        """Return an example for documentation and tests."""
        return cls(paths=["/var/lib/libvirt/images/win11.qcow2"], deep=True)


class ImageState(Answer, kw_only=True, frozen=True):
    """One image file as it is. ``problem`` says why it, or what it stands on, cannot be used; null where it can.

    ``backing`` and ``fingerprint`` as in wire.vm.Image. ``errors`` and ``leaked_clusters`` are from ``qemu-img check``
    and null where that did not run; ``busy`` where it could not, because another process writes to the file.
    """

    path: str
    exists: bool
    backing: str | None = None
    virtual_size_bytes: int = 0
    allocated_bytes: int = 0
    fingerprint: str = ""
    problem: str | None = None
    errors: int | None = None
    leaked_clusters: int | None = None
    busy: bool = False


class CheckedImages(Answer, kw_only=True, frozen=True):
    """The answer of ``POST /v1/images/check``, in the order that was asked for."""

    items: list[ImageState]

    @classmethod
    def example(cls) -> "CheckedImages":
        """Return an example for documentation and tests."""
        state = ImageState(
            path="/var/lib/libvirt/images/win11.qcow2",
            exists=True,
            virtual_size_bytes=68_719_476_736,
            allocated_bytes=21_474_836_480,
            fingerprint="21478375424:1793611800000000000",
            errors=0,
            leaked_clusters=0,
        )
        return cls(items=[state])


class Leftover(Answer, kw_only=True, frozen=True):
    """A file that is named as Coldframe names its own.

    ``overlay``: an image; ``domains`` have it in a chain, ``dependents`` are files beside it that stand on it.
    ``staged``: something that work in progress puts beside a host file or image. ``removable``: the work has ended,
    so that nobody will come for it. ``transaction`` is read from the name.
    """

    path: str
    kind: Literal["overlay", "staged"]
    transaction: UUID | None
    size_bytes: int
    mtime: datetime
    domains: list[str] = []
    dependents: list[str] = []
    removable: bool = False


class Leftovers(Answer, kw_only=True, frozen=True):
    """The answer of ``GET /v1/leftovers``. ``complete`` is false where the search met its limit.

    ``unreadable`` are domains whose chains could not be read: an overlay may be theirs although none is named.
    """

    items: list[Leftover]
    complete: bool
    unreadable: list[str] = []

    @classmethod
    def example(cls) -> "Leftovers":
        """Return an example for documentation and tests."""
        transaction = UUID("0f7c2c54-6a63-4a0e-9d0a-6ad2a0f3c0de")
        return cls(
            items=[
                Leftover(
                    path=f"/var/lib/libvirt/images/win11.cf-{transaction}.vda.qcow2",
                    kind="overlay",
                    transaction=transaction,
                    size_bytes=196_624,
                    mtime=datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
                )
            ],
            complete=True,
        )


class UnwantedImage(Request, kw_only=True, frozen=True):
    """One image file of a domain that is gone: the disk it was for, and its path as it was recorded."""

    target: str
    path: str


class RemoveImages(Request, kw_only=True, frozen=True):
    """The body of ``POST /v1/images/remove``: all of them go or none."""

    images: Annotated[list[UnwantedImage], msgspec.Meta(min_length=1, max_length=PATHS_LIMIT)]

    @classmethod
    def example(cls) -> "RemoveImages":
        """Return an example for documentation and tests."""
        return cls(images=[UnwantedImage(target="vda", path="/var/lib/libvirt/images/win11.qcow2")])


class RemovedImages(Answer, kw_only=True, frozen=True):
    """The files that were removed. What was asked for and is not here was gone already."""

    removed: list[str]

    @classmethod
    def example(cls) -> "RemovedImages":
        """Return an example for documentation and tests."""
        return cls(removed=[one.path for one in RemoveImages.example().images])


class RemoveLeftovers(Request, kw_only=True, frozen=True):
    """The body of ``POST /v1/leftovers/remove``: staged files to remove. Images are never removed this way."""

    paths: Annotated[list[str], msgspec.Meta(min_length=1, max_length=PATHS_LIMIT)]

    @classmethod
    def example(cls) -> "RemoveLeftovers":
        """Return an example for documentation and tests."""
        return cls(
            paths=["/var/lib/libvirt/qemu/nvram/.coldframe-0f7c2c54-6a63-4a0e-9d0a-6ad2a0f3c0de-5d2d9d9e6c2f4d0f"]
        )


class RemovedLeftovers(Answer, kw_only=True, frozen=True):
    """What was removed. What was asked for and is not here was not removable, or gone already."""

    removed: list[str]

    @classmethod
    def example(cls) -> "RemovedLeftovers":
        """Return an example for documentation and tests."""
        return cls(removed=RemoveLeftovers.example().paths)
