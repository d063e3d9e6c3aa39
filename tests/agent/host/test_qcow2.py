"""The qcow2 header parser, against images that qemu-img made and against images that nobody should have made."""

import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.host import qcow2
from agent.host.qcow2 import Header, Qcow2Error, parse, read_header

VIRTUAL = 1 << 30


def make(path: Path, *options: str, size: int = VIRTUAL) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, str(size)], check=True)
    return path


@cache
def overlay() -> bytes:
    """Return the first cluster of a real overlay on /images/base.qcow2."""
    with TemporaryDirectory() as directory:
        path = make(Path(directory) / "o", "-u", "-b", "/images/base.qcow2", "-F", "qcow2")
        return path.read_bytes()[:65_536]


def with_field(at: int, layout: str, value: int) -> bytes:
    data = bytearray(overlay())
    struct.pack_into(layout, data, at, value)
    return bytes(data)


def test_a_real_overlay_is_read(tmp_path: Path) -> None:
    path = make(tmp_path / "o", "-u", "-b", "/images/ü:,\n.qcow2", "-F", "raw")
    assert read_header(path) == Header(
        version=3,
        virtual_size_bytes=VIRTUAL,
        cluster_bits=16,
        encryption=0,
        internal_snapshots=0,
        backing="/images/ü:,\n.qcow2",
        backing_format="raw",
        external_data=False,
        data_file=None,
        dirty=False,
        corrupt=False,
    )


@pytest.mark.parametrize(
    "options",
    [
        ["-o", "compat=0.10"],
        ["-o", "cluster_size=512"],
        ["-o", "cluster_size=2M"],
        ["-o", "extended_l2=on"],
        ["-o", "lazy_refcounts=on,compression_type=zstd"],
        ["-o", "preallocation=metadata"],
    ],
    ids=lambda options: options[1],
)
def test_every_kind_that_qemu_makes_is_read(tmp_path: Path, options: list[str]) -> None:
    header = read_header(make(tmp_path / "image", *options, size=100 << 20))
    assert (header.virtual_size_bytes, header.backing, header.backing_format) == (100 << 20, None, None)


def test_an_empty_disk_is_read(tmp_path: Path) -> None:
    assert read_header(make(tmp_path / "image", size=0)).virtual_size_bytes == 0


def test_internal_snapshots_are_counted(tmp_path: Path) -> None:
    path = make(tmp_path / "image")
    for name in ("one", "two"):
        subprocess.run(["qemu-img", "snapshot", "-c", name, path], check=True)
    assert read_header(path).internal_snapshots == 2


def test_an_external_data_file_is_seen(tmp_path: Path) -> None:
    header = read_header(make(tmp_path / "image", "-o", f"data_file={tmp_path}/data"))
    assert (header.external_data, header.data_file) == (True, f"{tmp_path}/data")


def test_encryption_is_seen(tmp_path: Path) -> None:
    options = [
        "--object",
        "secret,id=s,data=abc",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
    ]
    image = tmp_path / "image"
    for _ in range(20):  # LUKS times the processor, and gives up where it is too busy to be timed
        with suppress(subprocess.CalledProcessError):
            make(image, *options)
            break
    assert read_header(image).encryption == 2


@pytest.mark.parametrize(("bit", "field"), [(0, "dirty"), (1, "corrupt"), (2, "external_data")])
def test_feature_bits_are_seen(bit: int, field: str) -> None:
    assert getattr(parse(with_field(72, ">Q", 1 << bit)), field) is True


@pytest.mark.case("S11")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: b"", "not a qcow2 image"),
        (lambda: b"#!/bin/sh\n" * 60, "not a qcow2 image"),
        (lambda: with_field(4, ">I", 4), "version is 4"),
        (lambda: with_field(8, ">Q", 1 << 63), "backing file name claims"),
        (lambda: with_field(16, ">I", 1024), "backing file name claims 1024 bytes"),
        (lambda: with_field(16, ">I", 0xFFFFFFFF), "backing file name claims"),
        (lambda: with_field(20, ">I", 8), "cluster size"),
        (lambda: with_field(20, ">I", 0xFFFFFFFF), "cluster size"),
        (lambda: with_field(24, ">Q", (64 << 50) + 512), "virtual size"),
        (lambda: with_field(32, ">I", 3), "encryption method 3"),
        (lambda: with_field(36, ">I", 0), "L1 table has 0 entries and needs 2"),
        (lambda: with_field(36, ">I", 0xFFFFFFFF), "L1 table claims"),
        (lambda: with_field(40, ">Q", 7), "impossible place"),
        (lambda: with_field(72, ">Q", 1 << 5), r"features that are not known here \(bits 0x20\)"),
        (lambda: with_field(100, ">I", 0xFFFFFFF8), "header claims a length"),
        (lambda: with_field(100, ">I", 96), "header claims a length"),
        (lambda: with_field(116, ">I", 0xFFFFFFFF), "header extension"),
        (lambda: overlay()[:100], "cut short"),
        (lambda: overlay().replace(b"/images/base", b"/images\0base"), "zero byte"),
        (lambda: overlay().replace(b"/images/base", b"/images/\xff\xfe\xfd\xfc"), "not UTF-8"),
    ],
)
def test_a_hostile_header_is_refused_with_its_reason(data: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(Qcow2Error, match=reason):
        parse(data())


def test_a_backing_format_given_twice_or_too_long_is_refused() -> None:
    data = bytearray(overlay())
    data[112:] = struct.pack(">II8sII8s", 0xE2792ACA, 5, b"qcow2", 0xE2792ACA, 3, b"raw") + data[160:]
    with pytest.raises(Qcow2Error, match="twice"):
        parse(bytes(data))
    data[112:136] = struct.pack(">II16s", 0xE2792ACA, 16, b"x" * 16)
    with pytest.raises(Qcow2Error, match="too long"):
        parse(bytes(data))


def test_a_file_shorter_than_its_cluster_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(overlay()[:600])
    assert read_header(path).backing == "/images/base.qcow2"


def judged(data: bytes) -> None:
    """Parse, and let nothing but the one error out; what is accepted is within its bounds."""
    try:
        header = parse(data)
    except Qcow2Error:
        return
    assert header.virtual_size_bytes <= qcow2.MAX_VIRTUAL_BYTES
    assert header.backing is None or len(header.backing.encode()) <= qcow2.MAX_NAME_BYTES


@given(st.binary(max_size=400))
def test_random_bytes_are_a_header_or_refused(data: bytes) -> None:
    judged(data)
    judged(qcow2.MAGIC + data)
    judged(qcow2.MAGIC + b"\0\0\0\3" + data)


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=16)), min_size=1, max_size=6),
    st.integers(0, 65_536),
)
def test_a_mutated_real_header_is_a_header_or_refused(changes: list[tuple[int, bytes]], length: int) -> None:
    data = bytearray(overlay())
    for at, value in changes:
        data[at : at + len(value)] = value
    judged(bytes(data))
    judged(bytes(data[:length]))


@given(st.sampled_from([8, 16, 20, 24, 36, 40, 60, 72, 100, 112, 116]), st.integers(0, (1 << 32) - 1))
def test_a_header_with_one_wild_number_is_a_header_or_refused(at: int, value: int) -> None:
    judged(with_field(at, ">I", value))


@given(st.binary(max_size=700))
def test_any_file_is_a_header_or_refused(data: bytes) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        path.write_bytes(data)
        with pytest.raises(Qcow2Error):
            read_header(path)
