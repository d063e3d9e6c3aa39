"""Archives changed at random, before and after they are compressed: read as they were, or refused by name."""

import asyncio
from functools import cache

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import SnapshotArchiveRefused
from tests.controller.archive import forge

CHANGES = st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=24)), min_size=1, max_size=4)


@cache
def sound() -> bytes:
    return asyncio.run(forge.packed())


@cache
def inside() -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(sound())


def changed(data: bytes, changes: list[tuple[int, bytes]], keep: int) -> bytes:
    found = bytearray(data)
    for anywhere, value in changes:
        at = anywhere % len(data)
        found[at : at + len(value)] = value
    return bytes(found[: keep or None])


def judge(archive: bytes) -> None:
    """Read it whole: nothing but the one refusal, and what is accepted has the members' own bytes."""
    try:
        unpacking, images = asyncio.run(forge.unpack(archive))
    except SnapshotArchiveRefused:
        return
    assert set(images) == {image.name for image in unpacking.manifest.images()}
    assert all(len(images[image.name]) == image.size_bytes for image in unpacking.manifest.images())


@pytest.mark.case("X7")
@settings(max_examples=200, derandomize=True, deadline=None)
@given(CHANGES, st.just(0) | st.integers(1, 40_000))
def test_a_changed_tar_is_read_or_refused(changes: list[tuple[int, bytes]], keep: int) -> None:
    judge(forge.compressed(changed(inside(), changes, keep)))


@pytest.mark.case("X7")
@settings(max_examples=100, derandomize=True, deadline=None)
@given(CHANGES, st.just(0) | st.integers(1, 4_000))
def test_a_changed_stream_is_read_or_refused(changes: list[tuple[int, bytes]], keep: int) -> None:
    judge(changed(sound(), changes, keep))


@pytest.mark.slow
@pytest.mark.case("X7")
@settings(max_examples=10_000, deadline=None)
@given(CHANGES, st.just(0) | st.integers(1, 40_000), st.booleans())
def test_changed_archives_are_read_or_refused_at_length(changes: list[tuple[int, bytes]], keep: int, raw: bool) -> None:
    judge(changed(sound(), changes, keep) if raw else forge.compressed(changed(inside(), changes, keep)))
