"""What may be a name. VMs' names are libvirt's and are taken as they are; these are the names that we hand out."""

import re
import unicodedata
from collections.abc import Mapping

from controller.errors import NameInvalid

_HANDLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TEXT_LIMIT_BYTES = 255
_DESCRIPTION_LIMIT_BYTES = 4096
_LABELS_LIMIT = 64


def check_handle(kind: str, name: str) -> str:
    """Return the name of a host or token: it stands in paths and logs, so it is plain. Raises NameInvalid."""
    if not _HANDLE.fullmatch(name):
        reason = "expected 1 to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit"
        raise NameInvalid(kind=kind, name=name, reason=reason)
    return name


def check_text(kind: str, name: str) -> str:
    """Return the name of a snapshot: any text of up to 255 bytes that can be shown on one line. Raises NameInvalid."""
    _check(kind, name, _TEXT_LIMIT_BYTES)
    if not name or name != name.strip():
        raise NameInvalid(kind=kind, name=name, reason="it is empty, or begins or ends with white space")
    if any(unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"} for letter in name):
        raise NameInvalid(kind=kind, name=name, reason="it holds control characters or line breaks")
    return name


def check_vm(name: str) -> str:
    """Return the name of a VM that is to be made; its host has stricter rules of its own. Raises NameInvalid."""
    check_text("VM", name)
    if "/" in name or name[0] in "-.":
        raise NameInvalid(kind="VM", name=name, reason="it holds a slash, or begins with a dash or a dot")
    return name


def check_description(text: str) -> str:
    """Return a description: any text of up to 4096 bytes. Raises NameInvalid."""
    _check("Description", text, _DESCRIPTION_LIMIT_BYTES)
    return text


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels: at most 64 names with values, each of up to 255 bytes. Raises NameInvalid."""
    if len(labels) > _LABELS_LIMIT:
        raise NameInvalid(kind="Label", name="", reason=f"there are {len(labels)} labels, at most {_LABELS_LIMIT}")
    for name, value in labels.items():
        check_text("Label", name)
        _check("Label", value, _TEXT_LIMIT_BYTES)
    return dict(labels)


def _check(kind: str, text: str, limit_bytes: int) -> None:
    # NUL and lone surrogates cannot be stored as text everywhere.
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > limit_bytes:
        raise NameInvalid(
            kind=kind, name=text[:32], reason=f"it has {size_bytes} bytes, at most {limit_bytes} are allowed"
        )
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise NameInvalid(kind=kind, name=ascii(text), reason="it holds characters that cannot be stored")
