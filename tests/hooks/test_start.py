"""What the hook does at ``prepare``: refuse or mark a start."""

import os
from pathlib import Path
from uuid import UUID
from xml.sax.saxutils import escape

import pytest

from agent.host.marks import boot_id, process_start
from agent.transactions.expected import Expected
from tests.hooks.hook import DOMAIN_XML, TRANSACTION, VM, Hook

LONG_NAME = "n" * 255
NAMES = [
    "two words",
    "it's",
    'say "hi"',
    "-rf",
    "$(touch owned)",
    "`id`",
    "машина",
    "a;b&c|d",
    "*",
    "new\nline",
    LONG_NAME,
]
BIOS_XML = DOMAIN_XML.replace(" firmware='efi'", "")
TPM_ELEMENT = DOMAIN_XML[DOMAIN_XML.index("    <tpm ") : DOMAIN_XML.index("    <audio ")]


def guard(hook: Hook, kind: str = "snapshot") -> None:
    hook.guards.raise_guard(VM, "win11", TRANSACTION, kind)


def with_nvram(path: Path) -> str:
    text = escape(str(path), {"'": "&apos;", '"': "&quot;"})
    return DOMAIN_XML.replace("<boot dev='hd'/>", f"<nvram template='/t.fd'>{text}</nvram>")


def test_a_start_without_a_guard_passes_and_leaves_a_mark_and_a_note(hook: Hook) -> None:
    result = hook.call("prepare")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert hook.guards.is_starting(VM)
    (note,) = hook.notes()
    assert note["at"].endswith("Z")
    assert note == {
        "type": "vm.starting",
        "vm": str(VM),
        "name": "win11",
        "reason": "",
        "at": note["at"],
        "boot_id": boot_id(),
    }


def test_the_mark_names_the_process_that_called_the_hook(hook: Hook) -> None:
    hook.call("prepare")
    mark = (hook.state / "starting" / str(VM)).read_text()
    assert f"libvirtd_pid={os.getpid()}\nlibvirtd_start={process_start(os.getpid())}\n" in mark


def test_everything_the_hook_makes_is_for_root_only(hook: Hook) -> None:
    hook.call("prepare")
    made = [path for path in hook.state.rglob("*") if path.stat().st_mode & 0o077]
    assert not made


@pytest.mark.case("S8")
def test_a_guard_refuses_the_start_and_says_what_to_do(hook: Hook) -> None:
    guard(hook)
    since = hook.guards.get(VM)
    result = hook.call("prepare")
    text = result.stderr.decode()
    assert result.returncode == 1
    assert since is not None
    for part in ("snapshot", str(TRANSACTION), f"{since.since:%Y-%m-%dT%H:%M:%SZ}", "coldframe-agent release win11"):
        assert part in text
    assert "coldframe-agent transactions" in text
    assert not hook.starting()
    assert hook.types() == ["vm.start-refused"]


@pytest.mark.parametrize("content", [b"", b"transaction=0f7c", b"\0" * 4096, b"kind=$(reboot)\n\x1b[2J"])
def test_a_damaged_guard_still_refuses(hook: Hook, content: bytes) -> None:
    (hook.state / "guards").mkdir()
    (hook.state / "guards" / str(VM)).write_bytes(content)
    result = hook.call("prepare")
    assert result.returncode == 1
    assert b"unknown" in result.stderr
    assert b"\x1b" not in result.stderr


def test_a_guard_that_is_no_file_still_refuses(hook: Hook) -> None:
    guards = hook.state / "guards"
    guards.mkdir()
    (guards / str(VM)).symlink_to("/nonexistent")
    assert hook.call("prepare").returncode == 1
    (guards / str(VM)).unlink()
    (guards / str(VM)).mkdir()
    assert hook.call("prepare").returncode == 1


def test_another_vms_guard_is_no_hindrance(hook: Hook) -> None:
    hook.guards.raise_guard(UUID(int=7), "other", TRANSACTION, "snapshot")
    assert hook.call("prepare").returncode == 0


@pytest.mark.case("X8")
@pytest.mark.parametrize("name", NAMES)
def test_any_name_works_and_none_reaches_a_shell(hook: Hook, name: str) -> None:
    assert hook.call("prepare", name).returncode == 0
    hook.call("release", name)
    guard(hook)
    result = hook.call("prepare", name)
    assert result.returncode == 1
    handle = LONG_NAME if name == LONG_NAME else str(VM)
    assert f"coldframe-agent release {handle}" in result.stderr.decode()
    assert [note["name"] for note in hook.notes()] == [name.replace("\n", " ")] * 2


@pytest.mark.case("P4")
def test_whole_host_files_pass(hook: Hook) -> None:
    hook.give_host_files()
    assert hook.call("prepare").returncode == 0


@pytest.mark.case("P4")
@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_start_without_nvram_is_refused(hook: Hook, damage: str) -> None:
    hook.give_host_files()
    hook.nvram().unlink()
    if damage == "empty":
        hook.nvram().touch()
    result = hook.call("prepare")
    text = result.stderr.decode()
    assert result.returncode == 1
    assert f"NVRAM {hook.nvram()} is {damage}" in text
    assert "coldframe-agent accept-blank win11" in text
    assert "coldframe vm restore-host-files" in text
    assert not hook.starting()
    assert "NVRAM" in hook.notes()[0]["reason"]


@pytest.mark.case("P4")
@pytest.mark.parametrize("damage", ["no directory", "no tpm2", "empty tpm2", "only a lock", "empty state"])
def test_a_start_without_tpm_state_is_refused(hook: Hook, damage: str) -> None:
    hook.give_host_files()
    permall, lock = (hook.tpm_dir / "tpm2" / name for name in ("tpm2-00.permall", ".lock"))
    permall.write_bytes(b"") if damage == "empty state" else permall.unlink()
    if damage in {"no directory", "no tpm2", "empty tpm2"}:
        lock.unlink()
    if damage in {"no directory", "no tpm2"}:
        (hook.tpm_dir / "tpm2").rmdir()
    if damage == "no directory":
        hook.tpm_dir.rmdir()
    result = hook.call("prepare")
    assert result.returncode == 1
    assert f"TPM state directory {hook.tpm_dir}" in result.stderr.decode()


def test_the_tpm_version_of_the_domain_decides_which_state_must_exist(hook: Hook) -> None:
    hook.give_host_files()
    old = hook.tpm_dir / "tpm1.2"
    (hook.tpm_dir / "tpm2").rename(old)
    (old / "tpm2-00.permall").rename(old / "tpm-00.permall")
    assert hook.call("prepare").returncode == 1
    assert hook.call("prepare", xml=DOMAIN_XML.replace("version='2.0'", "version='1.2'")).returncode == 0


@pytest.mark.parametrize("xml", [BIOS_XML, DOMAIN_XML.replace("<boot dev='hd'/>", "<nvram type='network'>")])
def test_a_domain_without_a_local_nvram_file_needs_none(hook: Hook, xml: str) -> None:
    hook.give_host_files()
    hook.nvram().unlink()
    assert hook.call("prepare", xml=xml).returncode == 0


@pytest.mark.parametrize("tpm", ["", TPM_ELEMENT.replace("emulator", "passthrough")])
def test_a_domain_without_an_emulated_tpm_needs_no_state(hook: Hook, tpm: str) -> None:
    hook.give_host_files()
    (hook.tpm_dir / "tpm2" / "tpm2-00.permall").unlink()
    assert hook.call("prepare", xml=DOMAIN_XML.replace(TPM_ELEMENT, tpm)).returncode == 0


def test_the_nvram_path_of_the_domain_counts_above_the_one_expected(hook: Hook) -> None:
    hook.give_host_files()
    path = hook.root / "R&D's &lt; <b>.fd"
    refused = hook.call("prepare", xml=with_nvram(path))
    assert refused.returncode == 1
    assert f"NVRAM {path} is missing" in refused.stderr.decode()
    path.write_bytes(b"nvram")
    assert hook.call("prepare", xml=with_nvram(path)).returncode == 0


@pytest.mark.parametrize("attributes", ["template='/t.fd' type='file'", "type='file' template='/t.fd'", "type='file'"])
def test_the_newer_form_of_the_nvram_element_is_understood(hook: Hook, attributes: str) -> None:
    hook.give_host_files()
    element = f"<nvram {attributes}>\n      <source file='/gone/R&amp;D.fd'/>\n    </nvram>"
    result = hook.call("prepare", xml=DOMAIN_XML.replace("<boot dev='hd'/>", element))
    assert result.returncode == 1
    assert b"is refused: its NVRAM /gone/R&D.fd is missing" in result.stderr


def test_an_explicitly_expected_nvram_must_exist(hook: Hook) -> None:
    Expected(hook.state).write(VM, "win11", hook.root / "own.fd", None, None)
    xml = DOMAIN_XML.replace("<boot dev='hd'/>", "<loader readonly='yes' type='pflash'>/c.fd</loader>")
    assert hook.call("prepare", xml=xml.replace(" firmware='efi'", "")).returncode == 1
    (hook.root / "own.fd").write_bytes(b"nvram")
    assert hook.call("prepare", xml=xml).returncode == 0


def test_a_renamed_domain_is_told_where_its_nvram_is(hook: Hook) -> None:
    hook.give_host_files()
    result = hook.call("prepare", "win12")
    assert result.returncode == 1
    assert f"mv '{hook.nvram()}' '{hook.nvram('win12')}'" in result.stderr.decode()
    hook.nvram().rename(hook.nvram("win12"))
    assert hook.call("prepare", "win12").returncode == 0


def test_a_name_never_becomes_a_command_to_paste(hook: Hook) -> None:
    hook.give_host_files("x'; reboot #")
    result = hook.call("prepare", "new")
    assert result.returncode == 1
    assert b"mv '" not in result.stderr


@pytest.mark.case("P4")
def test_accept_blank_lets_one_start_through(hook: Hook) -> None:
    hook.give_host_files()
    hook.nvram().unlink()
    hook.guards.accept_blank(VM)
    assert hook.call("prepare").returncode == 0
    assert "NVRAM" in hook.notes()[0]["reason"]
    assert hook.call("prepare").returncode == 1


def test_accept_blank_is_spent_by_a_start_that_did_not_need_it(hook: Hook) -> None:
    hook.give_host_files()
    hook.guards.accept_blank(VM)
    assert hook.call("prepare").returncode == 0
    assert not hook.accepts_blank


def test_accept_blank_is_not_spent_by_a_start_that_a_guard_refuses(hook: Hook) -> None:
    hook.give_host_files()
    hook.guards.accept_blank(VM)
    guard(hook)
    assert hook.call("prepare").returncode == 1
    assert hook.accepts_blank


def test_accept_blank_clears_empty_files_away_and_sets_the_rest_aside(hook: Hook) -> None:
    hook.give_host_files()
    hook.nvram().write_bytes(b"")
    (hook.tpm_dir / "tpm2" / "tpm2-00.permall").rename(hook.tpm_dir / "tpm2" / "tpm2-00.permall.bak")
    hook.guards.accept_blank(VM)
    assert hook.call("prepare").returncode == 0
    assert not hook.nvram().exists()
    assert not (hook.tpm_dir / "tpm2").exists()
    (aside,) = hook.tpm_dir.iterdir()
    assert (aside / "tpm2-00.permall.bak").read_bytes() == b"tpm"


def test_accept_blank_touches_no_file_that_is_whole(hook: Hook) -> None:
    hook.give_host_files()
    (hook.tpm_dir / "tpm2" / "tpm2-00.permall").unlink()
    hook.guards.accept_blank(VM)
    assert hook.call("prepare").returncode == 0
    assert hook.nvram().read_bytes() == b"nvram"
