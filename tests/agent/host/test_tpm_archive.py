"""Archives that an enemy would send."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ArchiveRefused
from agent.host.tpm_archive import MAX_MEMBERS, read_members
from tests.agent.host.tar import END, archive, member

GOOD = member("tpm2/tpm2-00.permall", b"state")


def with_library(*members: tuple[tarfile.TarInfo, bytes], layout: int = tarfile.USTAR_FORMAT, **headers: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout, pax_headers=headers or None) as file:
        for facts, data in members:
            facts.size = len(data)
            file.addfile(facts, io.BytesIO(data))
    return buffer.getvalue()


def info(name: str, **changes: object) -> tarfile.TarInfo:
    facts = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(facts, key, value)
    return facts


def test_a_plain_archive_is_read() -> None:
    data = with_library(
        (info("tpm2/tpm2-00.permall", mtime=5, uid=7), b"a" * 600), (info("tpm1.2/tpm-00.permall"), b"")
    )
    assert read_members(data) == {"tpm2/tpm2-00.permall": b"a" * 600, "tpm1.2/tpm-00.permall": b""}


def test_an_archive_made_by_the_tar_command_is_read(tmp_path: Path) -> None:
    (tmp_path / "tpm2").mkdir()
    (tmp_path / "tpm2" / "tpm2-00.permall").write_bytes(b"state")
    argv = ["tar", "--format=ustar", "-C", str(tmp_path), "-cf", "-", "tpm2"]
    data = subprocess.run(argv, check=True, capture_output=True).stdout
    assert read_members(data) == {"tpm2/tpm2-00.permall": b"state"}


@pytest.mark.case("X7")
@pytest.mark.parametrize(
    "name",
    [
        "/tpm2/x", "../tpm2/x", "tpm2/../x", "tpm2/..", "tpm2/.", "tpm2/", "tpm2", "tpm2//x", "./tpm2/x", "tpm2/a/b",
        "tpm3/x", "tpm1x2/x", "etc/passwd", "", "x", "tpm2/.lock", "tpm2/.ssh", "tpm2/-rf", "tpm2/a b", "tpm2/ü",
        "tpm2/a\nb", "tpm2/x\n", "tpm2/" + "x" * 65, b"tpm2/\xff",
    ],
)  # fmt: skip
def test_a_name_that_no_state_has_is_refused(name: str | bytes) -> None:
    with pytest.raises(ArchiveRefused, match="not a file of a TPM state"):
        read_members(archive(GOOD, member(name, b"x")))


@pytest.mark.case("X7")
@pytest.mark.parametrize(
    "kind", [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"L", b"K", b"x", b"g", b"X", b"\xff"]
)
def test_only_plain_files_are_accepted(kind: bytes) -> None:
    with pytest.raises(ArchiveRefused, match="not a plain file"):
        read_members(archive(GOOD, member("tpm2/other", b"x", kind, link=b"/etc/shadow")))


@pytest.mark.case("X7")
def test_extension_headers_of_real_tools_are_refused() -> None:
    plain = (info("tpm2/tpm2-00.permall"), b"x")
    long = (info("tpm2/" + "x" * 200), b"x")
    sparse = info("tpm2/tpm2-00.permall", pax_headers={"GNU.sparse.size": "1099511627776"})
    for data in (
        with_library(plain, layout=tarfile.PAX_FORMAT, path="/etc/passwd"),
        with_library((sparse, b"x"), layout=tarfile.PAX_FORMAT),
        with_library(long, layout=tarfile.GNU_FORMAT),
        with_library(long, layout=tarfile.PAX_FORMAT),
    ):
        with pytest.raises(ArchiveRefused):
            read_members(data)


@pytest.mark.case("X7")
def test_duplicates_and_crowds_are_refused() -> None:
    with pytest.raises(ArchiveRefused, match=r"holds tpm2/tpm2-00.permall twice"):
        read_members(archive(GOOD, GOOD))
    crowd = [member(f"tpm2/{number}") for number in range(MAX_MEMBERS)]
    assert len(read_members(archive(*crowd))) == MAX_MEMBERS
    with pytest.raises(ArchiveRefused, match="more than 16 files"):
        read_members(archive(*crowd, GOOD))


@pytest.mark.case("X7")
@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (b"77777777777\0", "ends in the middle"),
        (b"00000001001\0", "ends in the middle"),
        (b"\x80\0\0\0\0\0\0\xff\xff\xff\xff\xff", "not octal"),
        (b"\xff" * 12, "not octal"),
        (b"-0000000001\0", "not octal"),
        (b"\0" * 12, "not octal"),
        (b"0000000009\0\0", "not octal"),
    ],
)
def test_sizes_that_lie_are_refused(size: bytes, reason: str) -> None:
    with pytest.raises(ArchiveRefused, match=reason):
        read_members(archive(member("tpm2/x", b"", size=size), end=bytes(512)))


@pytest.mark.case("X7")
def test_archives_that_do_not_end_as_they_should_are_refused() -> None:
    for data, reason in [
        (b"", "its end is missing"),
        (GOOD, "its end is missing"),
        (archive(GOOD, end=bytes(512)), "its end is missing"),
        (archive(GOOD)[:100], "middle of a header"),
        (archive(GOOD, end=END + GOOD), "something follows"),
        (archive(GOOD, end=END + b"x"), "something follows"),
        (b"x" * 2048, "checksum|octal"),
        (archive(member("tpm2/x", prefix=b"/etc")), "longer than"),
    ]:
        with pytest.raises(ArchiveRefused, match=reason):
            read_members(data)


@pytest.mark.case("X7")
def test_a_changed_header_or_another_format_is_refused() -> None:
    changed = bytearray(archive(GOOD))
    changed[0:1] = b"T"
    with pytest.raises(ArchiveRefused, match="checksum"):
        read_members(bytes(changed))
    old = bytearray(member("tpm2/x"))
    old[257:265] = bytes(8)
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    with pytest.raises(ArchiveRefused, match="not in the ustar format"):
        read_members(archive(bytes(old)))


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 1600), st.binary(min_size=1, max_size=12)), max_size=4),
    st.integers(0, 3000),
)
def test_mutated_archives_are_read_or_refused(changes: list[tuple[int, bytes]], length: int) -> None:
    data = bytearray(archive(GOOD, member("tpm2/other", b"more")))
    for at, value in changes:
        data[at : at + len(value)] = value
    try:
        members = read_members(bytes(data[:length]))
    except ArchiveRefused:
        return
    assert all(name.startswith("tpm2/") and name.count("/") == 1 for name in members)


@given(st.binary(max_size=100), st.sampled_from([b"0", b"\0", b"5"]), st.binary(min_size=12, max_size=12))
def test_any_name_and_size_is_read_or_refused(name: bytes, kind: bytes, size: bytes) -> None:
    for field in (None, size):
        try:
            members = read_members(archive(member(name, b"data", kind, size=field)))
        except ArchiveRefused:
            continue
        assert set(members) <= {name.split(b"\0")[0].decode()}
