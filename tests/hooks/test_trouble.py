"""The hook when something is wrong with its input or its state directory."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hooks.hook import DOMAIN_XML, ENVIRONMENT, HOOK, TRANSACTION, VM, Hook

NO_UUID = DOMAIN_XML.replace("uuid>", "guid>")
AFTERWARDS = ["started", "stopped", "release"]
UNKNOWN = ["start", "reconnect", "restore", "migrate", "attach", "", "--help"]


@contextmanager
def full_file_system(path: Path) -> Iterator[None]:
    """Mount a file system at ``path`` and fill it to the last byte and inode."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=20", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def fill(path: Path) -> None:
    for count in range(20):
        try:
            (path / f"fill{count}").write_bytes(b"x" * 65_536)
        except OSError:
            continue


def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", "-s", "sh", HOOK], check=True)


@pytest.mark.parametrize("operation", UNKNOWN)
def test_other_operations_pass_and_print_nothing(hook: Hook, operation: str) -> None:
    hook.guards.raise_guard(VM, "win11", TRANSACTION, "snapshot")
    result = hook.call(operation)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert not hook.notes()


def test_a_call_without_arguments_passes(hook: Hook) -> None:
    subprocess.run([*hook.shell, hook.script], stdin=subprocess.DEVNULL, check=True)


@pytest.mark.parametrize(
    "xml", ["", NO_UUID, "<uuid>not one</uuid>\n", "<uuid>../../../../etc/passwd-aaaa-aaaa-aaaa</uuid>"]
)
def test_without_a_uuid_a_start_is_refused_and_the_rest_passes(hook: Hook, xml: str) -> None:
    refused = hook.call("prepare", xml=xml)
    assert refused.returncode == 1
    assert b"no domain XML" in refused.stderr
    for operation in AFTERWARDS:
        assert hook.call(operation, xml=xml).returncode == 0
    assert not hook.notes()


@pytest.mark.parametrize("operation", ["prepare", *AFTERWARDS, "reconnect"])
def test_xml_of_many_megabytes_and_lines_without_end_are_borne(hook: Hook, operation: str) -> None:
    filling = f"  <description>{'x' * (4 << 20)}</description>\n" + "  <!-- line -->\n" * 10_000
    assert hook.call(operation, xml=DOMAIN_XML.replace("  <metadata>", filling + "  <metadata>")).returncode == 0


@pytest.mark.parametrize("operation", ["prepare", *AFTERWARDS])
def test_a_host_without_coldframes_state_is_left_alone(hook: Hook, operation: str) -> None:
    shutil.rmtree(hook.state)
    result = hook.call(operation)
    assert (result.returncode, result.stderr) == (0, b"")
    assert not hook.state.exists()


def test_the_default_state_directory_holds_without_a_configuration(hook: Hook) -> None:
    hook.script.with_name("50-coldframe.conf").unlink()
    assert hook.call("prepare").returncode == 0
    assert not hook.notes()


def test_the_configuration_is_read_and_not_run(hook: Hook) -> None:
    owned = hook.root / "owned"
    hook.script.with_name("50-coldframe.conf").write_text(
        f"# state_dir=/x\n$(touch {owned})\nstate_dir=relative\nstate_dir={hook.state}"
    )
    assert hook.call("prepare").returncode == 0
    assert hook.types() == ["vm.starting"]
    assert not owned.exists()


def test_a_lock_that_is_never_free_refuses_the_start_after_five_seconds(hook: Hook) -> None:
    quick = hook.script.read_text().replace("LOCK_WAIT_S=5", "LOCK_WAIT_S=0.1")
    hook.script.write_text(quick)
    with (hook.state / "hook.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = hook.call("prepare")
        after = [hook.call(operation).returncode for operation in AFTERWARDS]
    assert result.returncode == 1
    assert b"hook.lock could not be taken" in result.stderr
    assert after == [0, 0, 0]
    assert not hook.notes()


def test_a_full_disk_refuses_the_start_and_lets_the_rest_pass(hook: Hook) -> None:
    with full_file_system(hook.state):
        hook.call("release")
        (hook.state / "hook.lock").touch()
        fill(hook.state)
        result = hook.call("prepare")
        assert result.returncode == 1
        assert b"Is the disk full" in result.stderr
        assert [hook.call(operation).returncode for operation in AFTERWARDS] == [0, 0, 0]


def test_a_spool_that_cannot_be_written_keeps_no_vm_from_starting(hook: Hook) -> None:
    (hook.state / "spool").write_text("in the way")
    result = hook.call("prepare")
    assert (result.returncode, result.stderr) == (0, b"")
    assert hook.starting()


def test_an_unreadable_list_of_expected_files_refuses(hook: Hook) -> None:
    (hook.state / "expected" / str(VM)).mkdir(parents=True)
    assert hook.call("prepare").returncode == 1


def test_no_child_outlives_the_hook(hook: Hook) -> None:
    read, write = os.pipe()
    argv = [*hook.shell, str(hook.script), "win11", "prepare", "begin", "-"]
    subprocess.run(argv, input=DOMAIN_XML.encode(), env=ENVIRONMENT, stdout=write, stderr=write, check=True)
    os.close(write)
    assert os.read(read, 1) == b""  # end of file at once: nobody else holds the other end
    os.close(read)
