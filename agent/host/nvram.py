"""UEFI variable stores.

The store is a firmware volume (UEFI Platform Initialization specification, volume 3, "Firmware Volume"): the header
has the file system GUID at 0x10, the volume's length as a little-endian 64-bit number at 0x20 and the signature
``_FVH`` at 0x28. EDK2's variable store follows at the header's length, 0x48, with a GUID of its own
(``MdeModulePkg/Include/Guid/VariableFormat.h``).
"""

import errno
from pathlib import Path
from uuid import UUID

from agent.errors import HostFileDamaged, HostFileMissing, StorageFailed
from agent.host import files

_SIGNATURE_AT, _LENGTH_AT, _STORE_GUID_AT = 0x28, 0x20, 0x48
_HEADER_BYTES = _STORE_GUID_AT + 16
_QCOW2_MAGIC = b"QFI\xfb"
_STORE_GUIDS = {
    UUID("aaf32c78-947b-439a-a180-2e144ec37792"),  # authenticated variables: every build with or without Secure Boot
    UUID("ddcf3616-3275-4164-98b6-fe85707ffe7d"),  # plain variables: old builds
}


def check(data: bytes, path: Path, name: str) -> None:
    """Raise ``HostFileDamaged``, naming the check that failed, unless ``data`` is a whole variable store."""
    reason = _damage(data)
    if reason is not None:
        raise HostFileDamaged(name=name, type="nvram", path=str(path), reason=reason)


def _damage(data: bytes) -> str | None:
    if data.startswith(_QCOW2_MAGIC):
        return "it is a qcow2 image, and only raw variable stores are supported"
    if len(data) < _HEADER_BYTES:
        return f"it has {len(data)} bytes, less than a variable store's header"
    if data[_SIGNATURE_AT : _SIGNATURE_AT + 4] != b"_FVH":
        return "the signature _FVH is missing at offset 0x28"
    length = int.from_bytes(data[_LENGTH_AT : _LENGTH_AT + 8], "little")
    if length != len(data):
        return f"its header says {length} bytes and the file has {len(data)}"
    if UUID(bytes_le=data[_STORE_GUID_AT:_HEADER_BYTES]) not in _STORE_GUIDS:
        return "no variable store begins at offset 0x48"
    return None


def read(path: Path, name: str, limit_bytes: int) -> bytes:
    """Return the checked contents of a domain's NVRAM file.

    Raises ``HostFileMissing`` (absent, empty, not a plain file), ``HostFileTooLarge``, ``HostFileDamaged`` or
    ``StorageFailed``.
    """
    try:
        data = files.read_limited_raw(path, limit_bytes, "nvram")
    except (FileNotFoundError, NotADirectoryError) as err:
        raise HostFileMissing(name=name, type="nvram", path=str(path), reason="it does not exist") from err
    except OSError as err:
        if err.errno in {errno.ELOOP, errno.EINVAL}:
            reason = "it is not a plain file"
            raise HostFileMissing(name=name, type="nvram", path=str(path), reason=reason) from err
        raise StorageFailed(action="reading", path=str(path), reason=err.strerror or str(err)) from err
    if not data:
        raise HostFileMissing(name=name, type="nvram", path=str(path), reason="it is empty")
    check(data, path, name)
    return data
