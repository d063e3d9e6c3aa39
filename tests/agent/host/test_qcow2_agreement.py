"""What our parser makes of a header, beside what QEMU makes of it; and a header that changes while it is read.

Both may refuse, and QEMU may refuse more. What both accept they must understand alike: a name that we read otherwise
than QEMU would be checked in vain.
"""

import json
import os
import struct
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.host import qcow2
from agent.host.qcow2 import Qcow2Error

_KINDS = (
    ("-o", "compat=0.10"),
    ("-o", "cluster_size=512"),
    ("-o", "cluster_size=2M"),
    ("-o", "extended_l2=on"),
    ("-o", "refcount_bits=1,lazy_refcounts=on"),
    ("-u", "-F", "raw", "-b", "/nowhere/a base: with, odd=\"signs\" ü"),
    ("-u", "-F", "qcow2", "-b", "json:{\"driver\":\"qcow2\"}", "-o", "compat=0.10"),
)  # fmt: skip
#: Where the header's numbers are (docs/interop/qcow2.txt), with how they are packed.
_FIELDS = {
    "backing offset": (8, ">Q"), "backing length": (16, ">I"), "cluster bits": (20, ">I"), "virtual size": (24, ">Q"),
    "encryption": (32, ">I"), "L1 entries": (36, ">I"), "L1 offset": (40, ">Q"), "refcount table": (48, ">Q"),
    "refcount clusters": (56, ">I"), "snapshots": (60, ">I"), "snapshot table": (64, ">Q"), "incompatible": (72, ">Q"),
    "compatible": (80, ">Q"), "autoclear": (88, ">Q"), "refcount order": (96, ">I"), "header length": (100, ">I"),
    "extension": (104, ">I"), "extension length": (108, ">I"), "next extension": (112, ">I"), "its length": (116, ">I"),
}  # fmt: skip
_WILD = (
    0, 1, 2, 7, 8, 9, 21, 22, 63, 64, 72, 104, 112, 511, 512, 1023, 1024, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 40, 1 << 56, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 0x23852875, 0x44415441, 0xE2792ACA,
)  # fmt: skip


@cache
def made(kind: int) -> bytes:
    """Return a whole small image that qemu-img made."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "image"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *_KINDS[kind], str(path), "4M"]
        subprocess.run(command, check=True)
        return path.read_bytes()


@dataclass(frozen=True)
class Change:
    """A real image with a few of its header's numbers, and of its bytes, changed."""

    kind: int
    fields: list[tuple[str, int]]
    bytes_: list[tuple[int, bytes]]

    def image(self) -> bytes:
        data = bytearray(made(self.kind))
        for field, value in self.fields:
            at, layout = _FIELDS[field]
            struct.pack_into(layout, data, at, value % (1 << (8 * struct.calcsize(layout))))
        for at, new in self.bytes_:
            data[at : at + len(new)] = new
        return bytes(data)


CHANGES = st.builds(
    Change,
    st.integers(0, len(_KINDS) - 1),
    st.lists(st.tuples(st.sampled_from(sorted(_FIELDS)), st.sampled_from(_WILD) | st.integers(0)), max_size=2),
    st.lists(st.tuples(st.integers(104, 480), st.binary(min_size=1, max_size=9)), max_size=2),
)


#: Found at random: it names an external data file, by no letter, though its features say that it has none.
NAMELESS = Change(1, [("next extension", 0x44415441), ("its length", 0)], [])


@dataclass(frozen=True)
class Told:
    """What both say of an image."""

    virtual_size: int
    cluster_size: int
    backing: str | None
    backing_format: str | None
    encrypted: bool
    data_file: str | None
    version: int


def ours(data: bytes) -> Told | None:
    try:
        found = qcow2.parse(data[: 1 << 21])
    except Qcow2Error:
        return None
    return Told(
        found.virtual_size_bytes // 512 * 512,  # QEMU counts in sectors
        1 << found.cluster_bits,
        found.backing,
        found.backing_format if found.backing else None,  # QEMU says none of what there is not
        found.encryption > 0,
        found.data_file,
        found.version,
    )


def theirs(data: bytes) -> Told | None:
    """Ask qemu-img, which does not open backing files for this."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "image"
        path.write_bytes(data)
        command = ["qemu-img", "info", "--output=json", "-f", "qcow2", str(path)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=20)
    if done.returncode != 0:
        return None
    found = json.loads(done.stdout)
    facts = found["format-specific"]["data"]
    return Told(
        found["virtual-size"],
        found["cluster-size"],
        found.get("backing-filename"),
        found.get("backing-filename-format"),
        bool(found.get("encrypted")),
        facts.get("data-file"),
        3 if facts["compat"] == "1.1" else 2,
    )


@pytest.mark.case("S11")
@pytest.mark.parametrize("kind", range(len(_KINDS)))
def test_a_sound_image_is_understood_as_qemu_understands_it(kind: int) -> None:
    assert ours(made(kind)) == theirs(made(kind)) is not None


@settings(max_examples=200, derandomize=True, deadline=None)
@given(CHANGES)
def test_any_change_to_a_header_is_read_or_refused(change: Change) -> None:
    found = ours(change.image())
    assert found is None or found.virtual_size <= qcow2.MAX_VIRTUAL_BYTES


@pytest.mark.case("S11")
@settings(max_examples=25, derandomize=True, deadline=None)
@given(CHANGES)
@example(NAMELESS)
def test_what_both_accept_both_understand_alike(change: Change) -> None:
    agree(change.image())


@pytest.mark.slow
@pytest.mark.case("S11")
@settings(max_examples=5_000, deadline=None)
@given(CHANGES)
def test_what_both_accept_both_understand_alike_at_length(change: Change) -> None:
    agree(change.image())


def agree(data: bytes) -> None:
    mine = ours(data)
    if mine is not None and (qemus := theirs(data)) is not None:
        assert mine == qemus


@pytest.mark.case("S11")
def test_a_header_that_changes_while_it_is_read_is_one_of_both_or_refused(tmp_path: Path) -> None:
    path, over = tmp_path / "image", threading.Event()
    versions = [bytearray(made(kind)[:65_536]) for kind in (5, 1)]
    path.write_bytes(made(5))

    def change() -> None:
        descriptor = os.open(path, os.O_WRONLY)
        while not over.is_set():
            for version in versions:
                os.pwrite(descriptor, version, 0)
                os.ftruncate(descriptor, 100)
        os.close(descriptor)

    enemy = threading.Thread(target=change)
    enemy.start()
    try:
        for _ in range(2_000):
            with suppress(Qcow2Error):
                assert qcow2.read_header(path).cluster_bits in {9, 16}
    finally:
        over.set()
        enemy.join()
