"""How single images are: real ones, broken on purpose."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host import image_check
from agent.host.image_locks import ImageLock
from agent.wire.upkeep import ImageState


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A root with data and an overlay on it."""
    root, top = tmp_path / "root.qcow2", tmp_path / "top.qcow2"
    make = ["qemu-img", "create", "-q", "-f", "qcow2"]
    subprocess.run([*make, root, "4M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", root], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*make, "-F", "qcow2", "-b", root, top], check=True)
    return root, top


async def look(path: Path, *, deep: bool = True) -> ImageState:
    return await image_check.look(path, [path.parent], 60, deep=deep)


async def test_a_sound_image_is_shown_with_its_header_and_no_errors(pair: tuple[Path, Path]) -> None:
    root, top = pair
    state = await look(top)
    assert (state.exists, state.backing, state.problem) == (True, str(root), None)
    assert (state.errors, state.leaked_clusters, state.busy) == (0, 0, False)
    assert (await look(top, deep=False)).errors is None


async def test_a_missing_file_a_missing_backing_file_and_one_outside_are_told_apart(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    root, top = pair
    root.rename(tmp_path / "moved.qcow2")
    assert not (await look(root)).exists
    state = await look(top)
    assert state.exists
    assert "root.qcow2" in str(state.problem)
    assert state.errors is None
    outside = await image_check.look(top, [tmp_path / "elsewhere"], 60, deep=True)
    assert "outside" in str(outside.problem)


async def test_corrupt_metadata_is_a_result(pair: tuple[Path, Path]) -> None:
    root, _ = pair
    data = bytearray(root.read_bytes())
    table = int.from_bytes(data[40:48], "big")  # docs/interop/qcow2.txt: l1_table_offset
    data[table : table + 8] = (0x8000_0000_0000_0000 | 0x7FFF_0000).to_bytes(8, "big")
    root.write_bytes(bytes(data))
    assert ((await look(root)).errors or 0) > 0


@pytest.fixture
def written_to(pair: tuple[Path, Path]) -> Iterator[Path]:
    """The overlay, while a process writes to it as QEMU does."""
    _, top = pair
    with subprocess.Popen(["qemu-io", "-f", "qcow2", top], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(b"write 0 4k\n")
        writer.stdin.flush()
        writer.stdout.readline()
        yield top
        writer.communicate(b"quit\n")


async def test_an_image_that_is_written_to_is_busy_and_a_locked_frozen_one_is_not(
    pair: tuple[Path, Path], written_to: Path
) -> None:
    root, _ = pair
    with ImageLock.take("vda", root):
        assert (await look(root)).errors == 0
    assert (await look(written_to)).busy
    assert (await look(root)).errors == 0
