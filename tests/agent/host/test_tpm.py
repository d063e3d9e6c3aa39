"""TPM states made by the real swtpm, packed, unpacked, damaged and locked."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.errors import (
    ArchiveRefused,
    HostFileDamaged,
    HostFileInUse,
    HostFileMissing,
    HostFileTooLarge,
    StorageFailed,
)
from agent.host import tpm
from tests.agent.host import tar

LIMIT = 1 << 20


def manufacture(directory: Path, version: str) -> Path:
    state = directory / version
    state.mkdir(parents=True)
    options = ["--tpm2"] if version == "tpm2" else []
    argv = ["swtpm_setup", "--tpmstate", str(state), *options, "--overwrite"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return directory


@pytest.fixture(scope="module")
def manufactured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return manufacture(tmp_path_factory.mktemp("swtpm") / "vm", "tpm2")


@pytest.fixture
def vm(manufactured: Path, tmp_path: Path) -> Path:
    """The directory of one domain, as libvirt keeps it: files of swtpm's user, private."""
    directory = Path(shutil.copytree(manufactured, tmp_path / "vm"))
    for path in (directory / "tpm2", *(directory / "tpm2").iterdir()):
        os.chown(path, 105, 114)
        path.chmod(0o700 if path.is_dir() else 0o600)
    return directory


def permall(vm: Path) -> Path:
    return vm / "tpm2" / "tpm2-00.permall"


def tree(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def test_a_real_state_comes_back_byte_for_byte(vm: Path, tmp_path: Path) -> None:
    data = tpm.pack(vm, "win11", LIMIT)
    tpm.unpack(data, tmp_path / "new", "win11")
    assert tree(tmp_path / "new") == {"tpm2": None, "tpm2/tpm2-00.permall": permall(vm).read_bytes()}
    assert tpm.pack(tmp_path / "new", "win11", LIMIT) == data
    assert oct((tmp_path / "new" / "tpm2").stat().st_mode & 0o7777) == "0o700"
    assert oct(permall(tmp_path / "new").stat().st_mode & 0o7777) == "0o600"


def test_a_state_of_version_1_2_comes_back_too(tmp_path: Path) -> None:
    vm = manufacture(tmp_path / "vm", "tpm1.2")
    data = tpm.pack(vm, "old", LIMIT)
    tpm.unpack(data, tmp_path / "new", "old")
    assert list(tree(tmp_path / "new")) == ["tpm1.2", "tpm1.2/tpm-00.permall"]
    assert tpm.pack(tmp_path / "new", "old", LIMIT) == data


def test_equal_states_give_equal_bytes_whatever_their_times_owners_and_order(vm: Path) -> None:
    (vm / "tpm2" / "tpm2-00.volatilestate").write_bytes(b"volatile")
    data = tpm.pack(vm, "vm", LIMIT)
    (vm / "tpm2" / "TMP2-00.permall").write_bytes(b"half-written")
    (vm / "tpm2" / ".lock").unlink()
    (vm / "tpm2" / "tpm2-00.volatilestate").unlink()
    (vm / "tpm2" / "tpm2-00.volatilestate").write_bytes(b"volatile")
    os.utime(permall(vm), (1, 1))
    os.chown(permall(vm), 7, 7)
    assert hashlib.sha256(tpm.pack(vm, "vm", LIMIT)).digest() == hashlib.sha256(data).digest()


def test_owner_mode_and_label_are_taken_from_the_present_state(vm: Path, tmp_path: Path) -> None:
    label = b"system_u:object_r:svirt_image_t:s0"
    os.setxattr(permall(vm), "security.selinux", label)
    vm.chmod(0o711)
    (vm / "tpm2" / "tpm2-00.volatilestate").write_bytes(b"new since")
    data = tpm.pack(vm, "vm", LIMIT)
    (vm / "tpm2" / "tpm2-00.volatilestate").unlink()
    tpm.unpack(data, tmp_path / "new", "vm", like=vm)
    for name in ("", "tpm2", "tpm2/tpm2-00.permall", "tpm2/tpm2-00.volatilestate"):
        model = permall(vm) if name.endswith("volatilestate") else vm / name
        found, expected = (tmp_path / "new" / name).stat(), model.stat()
        assert (found.st_uid, found.st_gid, found.st_mode) == (expected.st_uid, expected.st_gid, expected.st_mode)
    assert os.getxattr(permall(tmp_path / "new"), "security.selinux") == label


@pytest.mark.case("B10")
@pytest.mark.parametrize("change", [-1, -5000, 1])
def test_a_state_whose_header_disagrees_with_its_size_is_refused_by_name(vm: Path, change: int) -> None:
    data = permall(vm).read_bytes()
    permall(vm).write_bytes(data[:change] if change < 0 else data + b"x" * change)
    with pytest.raises(
        HostFileDamaged, match=r"Domain win11: its tpm at .*tpm2/tpm2-00.permall: (its header|it is empty)"
    ):
        tpm.pack(vm, "win11", LIMIT)
    with pytest.raises(HostFileDamaged):
        tpm.check(vm, "win11")


@pytest.mark.parametrize("data", [b"\2\1\0\x0a\0\0\0\0", b"\2\1\0\5\0\0\0\0\0\x0a", b"\2\1\xff\xff\0\0\0\0\0\x0a"])
def test_a_header_that_makes_no_sense_is_refused(vm: Path, data: bytes) -> None:
    permall(vm).write_bytes(data)
    with pytest.raises(HostFileDamaged, match="header"):
        tpm.check(vm, "vm")


@pytest.mark.parametrize("kind", ["no directory", "no state", "empty state", "only a lock", "only volatile", "a link"])
def test_a_state_that_is_not_there_is_missing(vm: Path, kind: str) -> None:
    shutil.rmtree(vm / "tpm2")
    if kind == "no directory":
        vm.rmdir()
    elif kind != "no state":
        (vm / "tpm2").mkdir()
    if kind == "only a lock":
        (vm / "tpm2" / ".lock").touch()
    elif kind == "only volatile":
        (vm / "tpm2" / "tpm2-00.volatilestate").write_bytes(b"x")
    elif kind == "a link":
        (vm / "tpm2").rmdir()
        (vm / "tpm2").symlink_to("/etc")
    expected = HostFileDamaged if kind == "a link" else HostFileMissing
    with pytest.raises(expected, match="Domain vm: its tpm"):
        tpm.pack(vm, "vm", LIMIT)


@pytest.mark.case("X7")
@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "odd name", "hidden"])
def test_what_swtpm_never_makes_is_not_packed(vm: Path, kind: str) -> None:
    path = vm / "tpm2" / "tpm2-01.permall"
    if kind == "link":
        path.symlink_to("/etc/shadow")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "odd name":
        path.with_name("-rf ü").touch()
    else:
        path.with_name(".ssh").touch()
    with pytest.raises(HostFileDamaged, match=r"not a regular file|not a TPM's"):
        tpm.pack(vm, "vm", LIMIT)


@pytest.mark.case("B10")
def test_a_state_above_the_limit_is_refused_by_type(vm: Path) -> None:
    (vm / "tpm2" / "tpm2-00.volatilestate").write_bytes(bytes(LIMIT - 100))
    with pytest.raises(HostFileTooLarge, match=f"tpm has more than {LIMIT} bytes"):
        tpm.pack(vm, "vm", LIMIT)


@pytest.mark.case("X7")
def test_a_refused_archive_leaves_nothing_and_the_old_state_intact(vm: Path, tmp_path: Path) -> None:
    before = tree(vm)
    hostile = tar.archive(tar.member("tpm2/tpm2-00.permall", tpm_blob()), tar.member("../../etc/cron.d/x", b"x"))
    with pytest.raises(ArchiveRefused):
        tpm.unpack(hostile, tmp_path / "new", "vm", like=vm)
    with pytest.raises(HostFileDamaged):
        tpm.unpack(tar.archive(tar.member("tpm2/tpm2-00.permall", tpm_blob() + b"x")), tmp_path / "new", "vm")
    with pytest.raises(HostFileMissing):
        tpm.unpack(tar.archive(), tmp_path / "new", "vm")
    assert not (tmp_path / "new").exists()
    assert tree(vm) == before


@pytest.mark.case("X7")
def test_a_directory_that_holds_something_is_not_unpacked_into(vm: Path) -> None:
    before = tree(vm)
    with pytest.raises(StorageFailed, match="not empty"):
        tpm.unpack(tpm.pack(vm, "vm", LIMIT), vm, "vm")
    assert tree(vm) == before


def test_an_unpacking_that_fails_half_way_leaves_nothing(vm: Path, tmp_path: Path) -> None:
    (vm / "tpm2").rename(vm / "gone")
    (vm / "tpm2").mkdir()
    (vm / "tpm2" / "tpm2-00.permall").symlink_to("/etc/passwd")
    data = tar.archive(tar.member("tpm2/tpm2-00.permall", tpm_blob()))
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed):
        tpm.unpack(data, tmp_path / "file" / "new", "vm")
    with pytest.raises(StorageFailed):
        tpm.unpack(data, tmp_path / "absent" / "new", "vm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "vm"]


def tpm_blob(size: int = 64) -> bytes:
    return b"\2\1\0\x0a\0\0" + size.to_bytes(4, "big") + bytes(size - 10)


def start_swtpm(vm: Path) -> subprocess.CompletedProcess[str]:
    """Start a real emulator on a domain's state and let it end by itself where it can."""
    argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={vm}/tpm2", "--ctrl", f"type=unixio,path={vm}/ctrl"]
    argv += ["--flags", "not-need-init,startup-clear"]
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=1)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 0, "", "it runs")


def test_swtpm_cannot_start_on_a_state_that_we_hold(vm: Path) -> None:
    with tpm.StateLock.take(vm, "vm"):
        refused = start_swtpm(vm)
        assert refused.returncode != 0
        assert "lock" in refused.stderr.lower()
    assert start_swtpm(vm).stderr == "it runs"


def test_a_state_that_swtpm_holds_is_in_use(vm: Path) -> None:
    argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={vm}/tpm2", "--flags", "not-need-init,startup-clear"]
    argv += [
        "--ctrl",
        f"type=unixio,path={vm}/ctrl",
        "--server",
        f"type=unixio,path={vm}/server",
        "--pid",
        f"file={vm}/pid",
    ]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as emulator:
        try:
            wait_for(vm / "pid", emulator)
            with pytest.raises(HostFileInUse, match="Domain win11: its tpm"):
                tpm.StateLock.take(vm, "win11")
        finally:
            emulator.terminate()
    tpm.StateLock.take(vm).release()


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a daemon has made its file; it does so once it serves."""
    for _ in range(500):
        if path.exists() and path.read_text().strip():
            return
        try:
            process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError("the daemon did not come up")


def test_two_of_us_cannot_hold_one_state(vm: Path) -> None:
    first = tpm.StateLock.take(vm)
    with pytest.raises(HostFileInUse):
        tpm.StateLock.take(vm)
    first.release()
    first.release()
    tpm.StateLock.take(vm).release()


def test_a_lock_file_is_made_as_swtpm_would_make_it(vm: Path) -> None:
    (vm / "tpm2" / ".lock").unlink()
    with tpm.StateLock.take(vm):
        facts = (vm / "tpm2" / ".lock").stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o7777) == (105, 114, 0o600)


def test_a_domain_without_a_state_needs_no_lock_and_an_odd_lock_file_is_named(vm: Path, tmp_path: Path) -> None:
    tpm.StateLock.take(tmp_path / "absent").release()
    (vm / "tpm2" / ".lock").unlink()
    (vm / "tpm2" / ".lock").symlink_to("/etc/passwd")
    with pytest.raises(StorageFailed, match="locking"):
        tpm.StateLock.take(vm)
    (vm / "tpm2" / ".lock").unlink()
    os.mkfifo(vm / "tpm2" / ".lock")
    with pytest.raises(StorageFailed, match="not a regular file"):
        tpm.StateLock.take(vm)
