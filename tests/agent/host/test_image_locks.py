"""Our image locks against QEMU's own."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.errors import ImageInUse, StorageFailed
from agent.host.image_locks import ImageLock


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "4M"], check=True)
    return path


def tool(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def write(image: Path) -> subprocess.CompletedProcess[str]:
    return tool("qemu-io", "-f", "qcow2", "-c", "write 0 64k", image)


@contextmanager
def held_open(image: Path, *options: str) -> Iterator[None]:
    """Let a real QEMU tool hold the image until the block ends."""
    argv = ["qemu-io", *options, "-f", "qcow2", str(image)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(len("qemu-io> "))  # it prompts once the image is open
        yield
        process.communicate(b"quit\n")


def test_qemu_cannot_write_to_an_image_that_we_hold(image: Path) -> None:
    with ImageLock.take("vda", image):
        refused = write(image)
        assert refused.returncode == 1
        assert 'Failed to get "write" lock' in refused.stderr
    assert write(image).returncode == 0


def test_a_virtual_machine_cannot_start_on_an_image_that_we_hold(image: Path) -> None:
    machine = ["qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-drive"]
    with ImageLock.take("vda", image):
        refused = tool(*machine, f"file={image},format=qcow2,if=virtio")
    assert refused.returncode == 1
    assert 'Failed to get "write" lock' in refused.stderr


def test_overlays_and_reading_go_on_while_we_hold(image: Path) -> None:
    with ImageLock.take("vda", image), ImageLock.take("vda", image):
        overlay = image.with_name("overlay.qcow2")
        assert tool("qemu-img", "create", "-f", "qcow2", "-b", image, "-F", "qcow2", overlay).returncode == 0
        assert tool("qemu-img", "info", image).returncode == 0
        assert write(overlay).returncode == 0


@pytest.mark.case("S11")
def test_an_image_that_somebody_writes_to_is_in_use(image: Path) -> None:
    with held_open(image), pytest.raises(ImageInUse, match=r"Disk vda: .*disk.qcow2 is locked by another process"):
        ImageLock.take("vda", image)
    ImageLock.take("vda", image).release()


def test_a_reader_is_not_in_our_way_and_we_leave_nothing_behind(image: Path) -> None:
    with held_open(image, "-r"):
        ImageLock.take("vda", image).release()
    with held_open(image), pytest.raises(ImageInUse):
        ImageLock.take("vda", image)
    assert write(image).returncode == 0


def test_the_lock_stays_with_the_file_when_it_is_renamed(image: Path) -> None:
    lock = ImageLock.take("vda", image)
    moved = image.rename(image.with_name("moved.qcow2"))
    assert write(moved).returncode == 1
    lock.release()
    lock.release()
    assert write(moved).returncode == 0


def test_an_image_that_cannot_be_opened_is_named(image: Path) -> None:
    with pytest.raises(StorageFailed, match="locking"):
        ImageLock.take("vda", image.with_name("absent"))
