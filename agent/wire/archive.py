"""Image files that travel between a transaction and a portable archive."""

from agent.wire.base import Answer


class SentImage(Answer, kw_only=True, frozen=True):
    """A file of a disk that an export gives; ``position`` as in ComingImage."""

    target: str
    position: int
    size_bytes: int
    virtual_size_bytes: int


class SentImages(Answer, kw_only=True, frozen=True):
    """All files that an export gives, disk by disk, the frozen file first."""

    items: list[SentImage]

    @classmethod
    def example(cls) -> "SentImages":
        """Return an example for documentation and tests."""
        size = 21_474_836_480
        return cls(items=[SentImage(target="vda", position=0, size_bytes=size, virtual_size_bytes=4 * size)])


class ReceivedImage(Answer, kw_only=True, frozen=True):
    """A file that an import has received whole: what arrived, by its hash."""

    target: str
    position: int
    size_bytes: int
    sha256: str

    @classmethod
    def example(cls) -> "ReceivedImage":
        """Return an example for documentation and tests."""
        return cls(target="vda", position=0, size_bytes=21_474_836_480, sha256="9f86d081884c7d65" * 4)


def image_name(target: str, position: int) -> str:
    """Return the file's name in an archive, and as what it names the one that stands on it names its backing file."""
    return f"{target}.qcow2" if position == 0 else f"{target}.{position}.qcow2"
