"""Paths whose directories somebody swaps for links: nothing behind a link is touched, and the error says so."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.errors import HostFileMissing, StorageFailed
from agent.host import files, image_locks, nvram, paths, qemu_img, tpm
from agent.host.image_stream import NewImage

NOBODY = 65_534


@pytest.fixture
def led_away(tmp_path: Path) -> Iterator[Path]:
    """Give a directory that has become a link to another with the same names, whose contents must not change."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for directory in (outside, tmp_path / "moved"):
        (directory / "tpm2").mkdir(parents=True)
        for name in ("a", "b", "tpm2/.lock"):
            (directory / name).write_bytes(b"canary")
    inside.symlink_to(outside)
    before = state(outside)
    yield inside
    assert state(outside) == before


def state(directory: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        facts = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (facts.st_ino, facts.st_uid, facts.st_mode, facts.st_mtime_ns, facts.st_nlink, data)
    return found


CALLS: dict[str, Callable[[Path], object]] = {
    "write": lambda d: files.write_atomic(d / "a", b"new"),
    "write staged": lambda d: files.write_staged(d / "c", b"new"),
    "owner": lambda d: files.copy_ownership(d / "b", d / "a"),
    "give": lambda d: files.give_like_directory(d / "a", d),
    "mode": lambda d: files.change_mode(d / "a", 0o777),
    "sync": lambda d: files.fsync_directory(d / "tpm2"),
    "rename": lambda d: files.rename(d / "a", d / "c"),
    "rename out": lambda d: files.rename(d / "a", d.parent / "taken"),
    "rename in": lambda d: files.rename(d.parent / "moved" / "a", d / "a"),
    "rename new": lambda d: files.rename_new(d / "a", d / "c"),
    "exchange": lambda d: files.exchange(d / "a", d / "b"),
    "finish exchange": lambda d: files.finish_exchange(d / "a", d / "b"),
    "read": lambda d: files.read_limited(d / "a", 100),
    "exists": lambda d: files.exists(d / "a"),
    "is there not": lambda d: files.exists(d / "z"),
    "regular": lambda d: files.is_regular(d / "a"),
    "list": lambda d: files.staged_for(d / "tpm2" / "x"),
    "directory": lambda d: files.make_directory(d / "new"),
    "remove": lambda d: files.remove_tree(d / "a"),
    "remove tree": lambda d: files.remove_tree(d / "tpm2"),
    "nvram": lambda d: nvram.read(d / "a", "vm", 100),
    "tpm": lambda d: tpm.pack(d, "vm", 100),
    "tpm lock": tpm.StateLock.take,
    "image lock": lambda d: image_locks.ImageLock.take("vda", d / "a"),
    "image lock alone": lambda d: image_locks.ImageLock.take_alone("vda", d / "a"),
    "image sync": lambda d: qemu_img.sync(d / "a"),
    "new image": lambda d: NewImage(d / "a"),
}


@pytest.mark.case("S11")
@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_done_behind_a_link_that_took_a_directorys_place(led_away: Path, call: str) -> None:
    with pytest.raises(StorageFailed, match=r"has become a link on the way to it.*restart coldframe-agent"):
        CALLS[call](led_away)


def test_a_path_is_settled_through_links_of_root_and_of_nobody_else(tmp_path: Path) -> None:
    real, link, second = tmp_path / "real", tmp_path / "link", tmp_path / "second"
    (real / "in").mkdir(parents=True)
    link.symlink_to("real")
    assert paths.settle(link / "in" / ".." / "in" / "file") == real / "in" / "file"
    assert paths.settle(link / "absent" / "file") == real / "absent" / "file"
    assert paths.settle(tmp_path / "link") == link  # the last component is for the caller to open, and he follows none
    os.link(link, second, follow_symlinks=False)
    with pytest.raises(PermissionError, match="a link that root did not make"):
        paths.settle(link / "file")
    second.unlink()
    os.lchown(link, NOBODY, NOBODY)
    with pytest.raises(StorageFailed, match="a link that root did not make"):
        files.settled(link / "file")
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="Too many levels"):
        paths.settle(tmp_path / "round" / "file")


@pytest.mark.parametrize("name", ["relative", "/etc/../etc/passwd"])
def test_names_that_are_no_settled_paths_are_refused(name: str) -> None:
    with pytest.raises(OSError, match="not one to work with") as failed:
        paths.stat(Path(name))
    assert failed.value.errno == errno.EINVAL


def test_what_is_not_there_is_missing_and_not_led_away(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not files.exists(tmp_path / "no" / "such")
    assert not files.exists(tmp_path / "file" / "such")
    with pytest.raises(HostFileMissing, match="does not exist"):
        nvram.read(tmp_path / "no" / "such", "vm", 100)


@pytest.mark.case("S11")
def test_a_racing_swap_of_a_directory_never_reaches_what_is_outside(tmp_path: Path) -> None:
    race(tmp_path, rounds=400)


@pytest.mark.slow
@pytest.mark.case("S11")
def test_a_long_race_of_swaps_never_reaches_what_is_outside(tmp_path: Path) -> None:
    race(tmp_path, rounds=60_000)


def race(root: Path, rounds: int) -> None:
    """Write, exchange, read and remove below a directory that another thread swaps for a link all the while."""
    outside, inside, aside, link = (root / name for name in ("outside", "inside", "aside", "link"))
    for directory in (outside, inside):
        directory.mkdir()
        for name in ("a", "b"):
            (directory / name).write_bytes(str(directory).encode())
    link.symlink_to(outside)
    before, over, outcomes = state(outside), threading.Event(), {"done": 0, "refused": 0}

    def swap() -> None:
        while not over.is_set():
            os.rename(inside, aside)  # noqa: PTH104 - as an enemy would
            os.rename(link, inside)  # noqa: PTH104
            os.rename(inside, link)  # noqa: PTH104
            os.rename(aside, inside)  # noqa: PTH104

    enemy = threading.Thread(target=swap)
    enemy.start()
    try:
        for number in range(rounds):
            for call in ("write", "owner", "rename", "exchange", "read", "remove"):
                try:
                    found = CALLS[call](inside)
                    assert call != "read" or found != str(outside).encode()
                    outcomes["done"] += 1
                except StorageFailed:
                    outcomes["refused"] += 1
            assert number % 100 or state(outside) == before
    finally:
        over.set()
        enemy.join()
    assert state(outside) == before
    assert min(outcomes.values()) > 0, outcomes
