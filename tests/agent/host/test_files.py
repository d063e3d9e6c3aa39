"""Replacing, exchanging and reading files, with real kills and a real full file system."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import HostFileTooLarge, StorageFailed
from agent.host import files

LABEL = b"system_u:object_r:virt_image_t:s0"

WRITER = """
import sys
from pathlib import Path
from agent.host import files
path = Path(sys.argv[1])
print("ready", flush=True)
while True:
    for letter in (b"a", b"b"):
        files.write_atomic(path, letter * 300_000, like=path, token="t")
"""


def strays(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith(files.STAGE_PREFIX))


def private(path: Path, uid: int = 64055, gid: int = 108, mode: int = 0o640) -> Path:
    os.chown(path, uid, gid)
    path.chmod(mode)
    os.setxattr(path, "security.selinux", LABEL)
    return path


def identity(path: Path) -> tuple[int, int, int, bytes]:
    facts = path.stat()
    return facts.st_uid, facts.st_gid, facts.st_mode & 0o7777, os.getxattr(path, "security.selinux")


@pytest.mark.case("B12")
def test_a_write_killed_at_any_moment_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "vm_VARS.fd"
    path.write_bytes(b"b" * 300_000)
    before = identity(private(path))
    letters = set()
    for attempt in range(25):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            with contextlib.suppress(subprocess.TimeoutExpired):
                writer.wait(timeout=0.003 + 0.0007 * attempt)
            writer.send_signal(signal.SIGKILL)
        data = path.read_bytes()
        assert len(data) == 300_000
        assert data in {b"a" * 300_000, b"b" * 300_000}
        assert identity(path) == before
        letters.add(data[:1])
        assert set(strays(tmp_path)) <= {files.staged_path(path, "t").name}
    assert letters == {b"a", b"b"}
    files.write_atomic(path, b"whole", like=path, token="t")
    assert strays(tmp_path) == []


@pytest.mark.case("B12")
def test_a_write_keeps_owner_mode_and_label_but_not_the_memory_of_libvirt(tmp_path: Path) -> None:
    path = tmp_path / "vm_VARS.fd"
    path.write_bytes(b"old")
    before = identity(private(path))
    os.setxattr(path, "trusted.libvirt.security.dac", b"+0:+0")
    files.write_atomic(path, b"new", like=path)
    assert path.read_bytes() == b"new"
    assert identity(path) == before
    assert os.listxattr(path) == ["security.selinux"]


@pytest.mark.case("B12")
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "target"
    path.mkdir()
    (path / "inside").touch()
    with pytest.raises(StorageFailed, match=r"writing .*target"):
        files.write_atomic(path, b"new")
    assert (path / "inside").exists()
    assert strays(tmp_path) == []


@pytest.mark.case("B12")
def test_a_full_file_system_is_named_and_leaves_the_old_file(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from agent.host import files
from agent.errors import NoSpace
path = Path({str(tmp_path)!r}) / "file"
files.write_atomic(path, b"old")
try:
    files.write_atomic(path, bytes(1 << 20))
except NoSpace as err:
    assert err.facts["need_bytes"] == 1 << 20, err.facts
    assert err.facts["have_bytes"] <= 64 << 10, err.facts
    assert path.read_bytes() == b"old"
    print([entry.name for entry in path.parent.iterdir()])
"""
    shell = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3"'
    argv = ["unshare", "--mount", "sh", "-c", shell, "sh", str(tmp_path), sys.executable, script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("['file']\n", "")


def test_a_new_file_is_private_whatever_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.write_atomic(tmp_path / "file", b"x", like=tmp_path / "absent")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o600


def test_a_mode_that_is_asked_for_wins(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.touch(0o600)
    files.write_atomic(tmp_path / "file", b"x", like=model, mode=0o644)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o644


@pytest.mark.case("X8")
@pytest.mark.parametrize("name", ["-rf", "a b", "\"'`$(id)", "ü\n%s", "x" * 255, "…" * 85])
def test_odd_names_are_written_like_others(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    files.write_atomic(path, b"x", token="0f7c2c54-6a63-4a0e-9d0a-6ad2a0f3c0de")
    assert path.read_bytes() == b"x"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    secret, link = tmp_path / "shadow", tmp_path / "link"
    secret.write_bytes(b"secret")
    link.symlink_to(secret)
    with pytest.raises(StorageFailed):
        files.read_limited(link, 100)
    with pytest.raises(StorageFailed):
        files.write_atomic(link, b"new", like=link)
    files.write_atomic(link, b"new")
    assert (secret.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"secret", b"new", False)


def test_ownership_is_not_set_through_a_link(tmp_path: Path) -> None:
    model, secret, link = tmp_path / "model", tmp_path / "shadow", tmp_path / "link"
    model.touch(0o666)
    secret.touch(0o600)
    link.symlink_to(secret)
    with pytest.raises(StorageFailed, match="setting the owner"):
        files.copy_ownership(model, link)
    assert secret.stat().st_mode & 0o777 == 0o600


@pytest.mark.case("B10")
def test_a_file_above_the_limit_is_refused_by_its_type(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert files.read_limited(path, 5) == b"12345"
    with pytest.raises(HostFileTooLarge, match="The nvram has more than 4 bytes"):
        files.read_limited(path, 4, "nvram")


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "absent"])
def test_only_regular_files_are_read_and_nothing_blocks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    with pytest.raises(StorageFailed, match="reading"):
        files.read_limited(path, 100)


@pytest.mark.parametrize("swap", [files.exchange, files.exchange_by_renames])
@pytest.mark.parametrize("directories", [False, True])
def test_two_entries_change_places(tmp_path: Path, swap: object, directories: bool) -> None:
    a, b = pair(tmp_path, directories=directories)
    assert callable(swap)
    swap(a, b)
    assert (content(a), content(b)) == (b"b", b"a")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("directories", [False, True])
@pytest.mark.parametrize("renames", [1, 2])
def test_a_swap_cut_short_in_its_fallback_is_completed(tmp_path: Path, renames: int, directories: bool) -> None:
    a, b = pair(tmp_path, directories=directories)
    aside = files.staged_path(a, "exchange")
    if directories:
        a.rename(aside)
    else:
        os.link(a, aside)
    if renames == 2:
        b.replace(a)
    assert files.finish_exchange(a, b) is True
    assert (content(a), content(b)) == (b"b", b"a")
    assert files.finish_exchange(a, b) is False
    assert (content(a), content(b)) == (b"b", b"a")


@pytest.mark.parametrize("swap", [files.exchange, files.exchange_by_renames])
def test_a_swap_with_nothing_touches_nothing(tmp_path: Path, swap: object) -> None:
    a = tmp_path / "a"
    a.write_bytes(b"a")
    assert callable(swap)
    with pytest.raises((StorageFailed, FileNotFoundError)):
        swap(a, tmp_path / "absent")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a", b"a")]


def pair(tmp_path: Path, *, directories: bool) -> tuple[Path, Path]:
    for name in ("a", "b"):
        path = tmp_path / name
        if directories:
            path.mkdir()
            path = path / "inside"
        path.write_bytes(name.encode())
    return tmp_path / "a", tmp_path / "b"


def content(path: Path) -> bytes:
    return (path / "inside" if path.is_dir() else path).read_bytes()


def test_removing_twice_is_like_removing_once(tmp_path: Path) -> None:
    tree, link, outside = tmp_path / "tree", tmp_path / "link", tmp_path / "outside"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "file").touch()
    outside.mkdir()
    (outside / "kept").touch()
    (tree / "way-out").symlink_to(outside)
    link.symlink_to(outside)
    for path in (tree, link, tree, link, tmp_path / "no" / "such"):
        files.remove_tree(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["outside"]
    assert (outside / "kept").exists()


def test_free_bytes_are_those_of_the_file_system(tmp_path: Path) -> None:
    facts = os.statvfs(tmp_path)
    assert abs(files.free_bytes(tmp_path) - facts.f_bavail * facts.f_frsize) < 1 << 30
    with pytest.raises(StorageFailed):
        files.free_bytes(tmp_path / "absent")


def test_renaming_replaces_and_names_the_target_when_it_cannot(tmp_path: Path) -> None:
    a, b = pair(tmp_path, directories=False)
    files.rename(a, b)
    assert b.read_bytes() == b"a"
    with pytest.raises(StorageFailed, match="renaming to"):
        files.rename(a, b)
