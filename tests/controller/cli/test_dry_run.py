"""``--dry-run``: the call that would change something asks for its plan, and the command ends there."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.main

from agent.wire.backup_file import BackupFile
from agent.wire.fleet import Host, Vm
from agent.wire.plan import Plan
from agent.wire.problem import Problem
from agent.wire.snapshot import Snapshot
from controller.cli.app import app
from tests.controller.cli.conftest import Coldframe
from tests.controller.cli.fake import FakeController

SNAPSHOT, VM, HOST = Snapshot.example(), Vm.example(), Host.example()
PLAN = Plan.example()
BACKUP = BackupFile.example()
ONE = f"/v1/snapshots/{SNAPSHOT.uuid}"
BUSY = Problem(title="Busy", status=409, code="domain-busy", detail="win11 is worked on; nothing was touched")


def refused() -> Plan:
    return msgspec.structs.replace(PLAN, would="be-refused", refusals=[BUSY], steps=[], bytes_to_move=0)


def test_the_plan_is_printed_as_words_and_as_json(fake: FakeController, coldframe: Coldframe) -> None:
    fake.answer("DELETE", ONE, PLAN)
    done = coldframe("snapshot", "delete", str(SNAPSHOT.uuid), "--dry-run")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("This would be done; nothing was changed:\n")
    assert "rebase vda" in done.out
    assert "192.0 KiB would be copied" in done.out
    assert fake.sent("DELETE", ONE).query == {"dry_run": "true"}
    done = coldframe("--dry-run", "--json", "snapshot", "delete", str(SNAPSHOT.uuid))
    assert msgspec.convert(done.json, Plan) == PLAN


def test_a_refusal_has_the_exit_status_of_the_call_itself(fake: FakeController, coldframe: Coldframe) -> None:
    fake.answer("POST", "/v1/vms/win11/snapshots", refused())
    done = coldframe("snapshot", "create", "win11", "--dry-run")
    assert (done.status, done.err) == (4, "")
    assert done.out.splitlines()[:2] == ["This would be refused; nothing was changed:", f"domain-busy: {BUSY.detail}"]


@pytest.fixture
def answering(fake: FakeController) -> FakeController:
    """A controller that has one of everything, and plans whatever it is told to change."""
    for kind, where, one in (
        ("snapshots", ONE, SNAPSHOT),
        ("vms", "/v1/vms/win11", VM),
        ("hosts", "/v1/hosts/kvm1", HOST),
        ("backup-files", f"/v1/backup-files/{BACKUP.uuid}", BACKUP),
    ):
        fake.answer("GET", where, one)
        fake.page(f"/v1/{kind}", [one])
    fake.page("/v1/tokens", [])
    fake.plan_changes = True
    return fake


#: What each command that changes anything needs after its name. A new one has its line here, or among those that read.
CHANGING: dict[str, tuple[str, ...]] = {
    "host add": ("kvm1", "http://127.0.0.1:1", "--agent-token-file", "FILE"),
    "host set": ("kvm1", "--rename", "kvm9"),
    "host remove": ("kvm1",),
    "vm sync": ("win11",),
    "vm restore-host-files": ("win11",),
    "vm place": ("win11", "kvm1"),
    "vm forget": ("win11",),
    "snapshot create": ("win11",),
    "snapshot revert": ("ID",),
    "snapshot clone": ("ID", "copy"),
    "snapshot ungroup": ("ID",),
    "snapshot delete": ("ID",),
    "snapshot edit": ("ID", "--name", "new"),
    "snapshot protect": ("ID",),
    "snapshot unprotect": ("ID",),
    "snapshot export": ("ID", "FILE", "--force"),
    "snapshot import": ("FILE", "--host", "kvm1"),
    "snapshot verify": ("ID",),
    "backup create": ("win11", "--owner", str(BACKUP.uuid)),
    "backup export": (str(BACKUP.uuid), "FILE"),
    "retention set": ("nightly", "--vm", "win11", "--keep-last", "1"),
    "retention remove": ("nightly",),
    "retention apply": ("nightly",),
    "operation cancel": (str(BACKUP.uuid),),
    "token create": ("ansible", "--role", "reader"),
    "token revoke": (str(BACKUP.uuid),),
    "doctor": ("--repair",),
}
READING = {
    *("host list", "host show", "vm list", "vm show", "vm volumes", "snapshot list", "snapshot tree", "snapshot show"),
    *("retention list", "retention show", "retention preview"),
    *("backup list", "backup show", "operation list", "operation show", "operation wait", "token list", "events"),
}


def commands(found: Any, path: str = "") -> list[str]:
    """Return the names of all commands."""
    children = getattr(found, "commands", None)
    if not children:
        return [path.strip()]
    return [name for one, child in children.items() for name in commands(child, f"{path} {one}")]


def test_every_command_is_known_to_change_something_or_to_read() -> None:
    """A new command that changes anything needs nothing but its line in CHANGING: the client plans every change."""
    assert set(commands(typer.main.get_command(app))) == CHANGING.keys() | READING


@pytest.mark.parametrize("command", CHANGING)
def test_every_changing_command_ends_with_the_plan(
    answering: FakeController, coldframe: Coldframe, tmp_path: Path, command: str
) -> None:
    file = tmp_path / "file"
    file.write_text("a-secret-of-twenty-characters\n")
    file.chmod(0o600)
    words = {"ID": str(SNAPSHOT.uuid), "FILE": str(file)}
    done = coldframe(*command.split(), *(words.get(one, one) for one in CHANGING[command]), "--dry-run", "--json")
    assert done.status == 0, done.out + done.err
    assert msgspec.convert(done.json, Plan).would == "succeed"
    assert all(one.query["dry_run"] == "true" for one in answering.asked if one.method != "GET")
    assert file.read_text() == "a-secret-of-twenty-characters\n"
