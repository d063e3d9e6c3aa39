"""The steps of an import, and what an export gives. Nothing here touches anything."""

import msgspec

from agent.transactions.step import Step


class ReceiveImage(Step, kw_only=True, frozen=True, tag="receive-image"):
    """Write an image of an archive to ``staged``, beside ``path``, and stand it on ``backing`` (None: on nothing).

    It must have exactly ``size_bytes``, name the file ``named`` as its backing file (None: no file), and show a disk
    of ``virtual_size_bytes``. ``like`` is the directory whose owner and label it gets.
    """

    target: str
    position: int
    path: str
    staged: str
    backing: str | None
    named: str | None
    size_bytes: int
    virtual_size_bytes: int
    like: str

    @property
    def name(self) -> str:
        """Name the file."""
        return f"receive-image {self.target}.{self.position}"


class PlaceImage(Step, kw_only=True, frozen=True, tag="place-image"):
    """Move a received image from ``staged`` to ``path``, where nothing is."""

    target: str
    position: int
    path: str
    staged: str

    @property
    def name(self) -> str:
        """Name the file."""
        return f"place-image {self.target}.{self.position}"


class SendImage(msgspec.Struct, kw_only=True, frozen=True):
    """A file that an export gives; ``named`` is what it will call its backing file in the archive."""

    target: str
    position: int
    path: str
    named: str | None
    virtual_size_bytes: int
