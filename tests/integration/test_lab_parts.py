"""The parts of the lab that need no host: disks, console text, requirements."""

from pathlib import Path

import pytest

from tests.lab import console, disks, requirements
from tests.lab.daemons import toml
from tests.lab.errors import LabError
from tests.lab.namespace import Namespace
from tests.lab.tpm import Tpm


def overlay(path: Path, backing: Path) -> Path:
    """Make an overlay of an image."""
    disks.run_here(["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", path])
    return path


def test_what_is_written_at_any_offset_is_read_back(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    disks.create(image, 4)
    disks.write(image, 1_000_003, b"across a sector's edge" * 50)
    assert disks.read(image, 1_000_003, 1_100) == b"across a sector's edge" * 50
    assert disks.read(image, 1_000_000, 5) == b"\0\0\0ac"


def test_the_hash_is_of_the_guests_view_and_not_of_the_chain(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    disks.create(base, 4)
    disks.write(base, 0, b"below")
    top = overlay(tmp_path / "top.qcow2", base)
    assert disks.sha256_raw(top) == disks.sha256_raw(base)
    disks.write(top, 70_000, b"above")
    assert disks.sha256_raw(top) != disks.sha256_raw(base)
    assert disks.read(top, 0, 5) == b"below"
    assert disks.read(base, 70_000, 5) == b"\0" * 5


def test_a_file_is_put_into_an_overlay_and_the_base_keeps_its_own(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    disks.create(base, 8, fat=True)
    disks.put_file(base, "note.txt", b"first")
    top = overlay(tmp_path / "top.qcow2", base)
    disks.put_file(top, "note.txt", b"second" * 5_000)
    assert disks.get_file(top, "note.txt") == b"second" * 5_000
    assert disks.get_file(base, "note.txt") == b"first"
    assert disks.get_file(base, "none.txt") is None


def test_a_broken_image_is_an_error_with_the_tools_words(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    image.write_bytes(b"not qcow2 at all")
    with pytest.raises(LabError, match="not in qcow2 format"):
        disks.sha256_raw(image)


def test_terminal_escapes_are_removed_from_what_the_console_shows() -> None:
    assert console.plain("\x1b[08;08Hl\x1b[08;09Hs\x1b[1m\x1b[33m\x1b[40m\r\nFS0:\\> ") == "ls\nFS0:\\> "


def test_an_echo_that_the_screens_edge_broke_is_still_found() -> None:
    assert console.without_echo("echo  a lo\nng word\na long word\n", "echo a long word") == "\na long word\n"


def test_the_prompt_is_told_from_its_echo() -> None:
    assert console.PROMPT.search("Shell> \x1b[0m\x1b[37m\x1b[40m")
    assert console.PROMPT.search("FS0:\\dir\\> \x1b[0m\x1b[37m\x1b[40m")
    assert not console.PROMPT.search("echo x > ")


def test_this_machine_has_what_a_private_host_needs() -> None:
    assert requirements.missing() == []


def test_a_missing_command_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(requirements.COMMANDS, "no-such-command", "no-such-package")
    assert requirements.missing() == ["command no-such-command is not installed; package: no-such-package"]


def test_a_root_below_a_covered_directory_is_refused() -> None:
    with pytest.raises(LabError, match="lies below /run"):
        Namespace("nowhere", Path("/run/nowhere")).open()


def test_a_tpm_that_was_never_started_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="start the VM once"):
        Tpm(tmp_path).read_index(0x1500016)


def test_settings_become_toml() -> None:
    assert toml({"listen": "127.0.0.1:1", "dirs": ["/a b"], "limit": 3, "path": Path("/x")}) == (
        'listen = "127.0.0.1:1"\ndirs = ["/a b"]\nlimit = 3\npath = "/x"\n'
    )
