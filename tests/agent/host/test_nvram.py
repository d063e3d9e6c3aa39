"""NVRAM checks, against the variable stores that OVMF ships."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import HostFileDamaged, HostFileMissing, HostFileTooLarge
from agent.host import nvram

TEMPLATES = [Path("/usr/share/OVMF") / name for name in ("OVMF_VARS.fd", "OVMF_VARS_4M.fd", "OVMF_VARS_4M.ms.fd")]
LIMIT = 1 << 20


def store() -> bytearray:
    return bytearray(TEMPLATES[0].read_bytes())


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_real_stores_are_sound(template: Path) -> None:
    assert nvram.read(template, "vm", LIMIT) == template.read_bytes()


@pytest.mark.case("B10")
@pytest.mark.parametrize("size", [1, 87, 88, 65_536, 131_071])
def test_a_truncated_store_is_refused_by_name(tmp_path: Path, size: int) -> None:
    path = tmp_path / "win11_VARS.fd"
    path.write_bytes(store()[:size])
    with pytest.raises(HostFileDamaged, match=r"Domain win11: its nvram at .*win11_VARS.fd is damaged: it"):
        nvram.read(path, "win11", LIMIT)


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0x28, b"_FVX", "signature _FVH"),
        (0x20, b"\x01", "header says 131073 bytes and the file has 131072"),
        (0x48, b"\0", "no variable store begins"),
        (0x00, b"QFI\xfb", "qcow2 image"),
    ],
)
def test_the_check_that_failed_is_named(at: int, value: bytes, reason: str) -> None:
    data = store()
    data[at : at + len(value)] = value
    with pytest.raises(HostFileDamaged, match=reason):
        nvram.check(bytes(data), Path("/nvram"), "vm")


def test_a_store_with_something_after_it_is_refused() -> None:
    with pytest.raises(HostFileDamaged, match="the file has 131073"):
        nvram.check(bytes(store()) + b"\0", Path("/nvram"), "vm")


@pytest.mark.parametrize("kind", ["absent", "empty", "link", "directory", "no directory"])
def test_what_is_not_there_is_missing_and_not_damaged(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "vm_VARS.fd"
    if kind == "empty":
        path.touch()
    elif kind == "link":
        path.symlink_to(TEMPLATES[0])
    elif kind == "directory":
        path.mkdir()
    elif kind == "no directory":
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "vm_VARS.fd"
    with pytest.raises(HostFileMissing, match="Domain vm: its nvram"):
        nvram.read(path, "vm", LIMIT)


@pytest.mark.case("B10")
def test_a_store_above_the_limit_is_refused_by_type(tmp_path: Path) -> None:
    path = tmp_path / "vm_VARS.fd"
    path.write_bytes(store())
    with pytest.raises(HostFileTooLarge, match="nvram has more than 131071 bytes"):
        nvram.read(path, "vm", 131_071)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_damaged_and_nothing_else(data: bytes) -> None:
    with pytest.raises(HostFileDamaged):
        nvram.check(data, Path("/nvram"), "vm")
