"""A maker of tar archives that no honest tool would make."""

END = bytes(1024)


def member(
    name: str | bytes,
    data: bytes = b"",
    kind: bytes = b"0",
    *,
    size: bytes | None = None,
    prefix: bytes = b"",
    link: bytes = b"",
) -> bytes:
    """Return header and padded data of one member; ``size`` replaces the size field as it is."""
    raw = name if isinstance(name, bytes) else name.encode()
    header = bytearray(512)
    header[0:100] = raw[:100].ljust(100, b"\0")
    header[100:124] = b"0000600\0" + b"0000000\0" * 2
    header[124:136] = size if size is not None else b"%011o\0" % len(data)
    header[136:148] = b"00000000000\0"
    header[156:157] = kind
    header[157:257] = link.ljust(100, b"\0")
    header[257:265] = b"ustar\x0000"
    header[345:500] = prefix.ljust(155, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def archive(*members: bytes, end: bytes = END) -> bytes:
    """Join members into an archive."""
    return b"".join(members) + end
