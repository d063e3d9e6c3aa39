"""What each command asks the controller, and what it prints."""

import hashlib
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from agent.wire.access import Event, NewToken, Token
from agent.wire.backup_file import BackupFile
from agent.wire.finding import Finding
from agent.wire.fleet import Host, Vm, VmVolume
from agent.wire.operation import Operation
from agent.wire.problem import Problem
from agent.wire.snapshot import Snapshot
from tests.controller.cli.conftest import Coldframe
from tests.controller.cli.fake import FakeController

SNAPSHOT = Snapshot.example()
OPERATION = Operation.example()
SNAPSHOT_PATH = f"/v1/snapshots/{SNAPSHOT.uuid}"
OPERATION_PATH = f"/v1/operations/{OPERATION.uuid}"


def running() -> Operation:
    return msgspec.structs.replace(OPERATION, state="running", step="capture tpm", ended_at=None, result={})


def test_snapshot_create_waits_and_prints_the_snapshot(fake: FakeController, coldframe: Coldframe) -> None:
    fake.answer("POST", "/v1/vms/win11/snapshots", running(), status=202)
    fake.answer("GET", OPERATION_PATH, running())
    fake.answer("GET", OPERATION_PATH, OPERATION)
    fake.answer("GET", SNAPSHOT_PATH, SNAPSHOT)
    done = coldframe("snapshot", "create", "win11", "before-update", "--label", "a=b=c", "--exclude", "vdb", "--json")
    assert (done.status, done.err) == (0, "")
    assert msgspec.convert(done.json, Snapshot) == SNAPSHOT
    asked = fake.sent("POST", "/v1/vms/win11/snapshots")
    assert asked.body | {"uuid": ""} == {
        "name": "before-update",
        "description": "",
        "labels": {"a": "b=c"},
        "host_files": "required",
        "exclude": ["vdb"],
        "uuid": "",
    }
    assert asked.headers["Idempotency-Key"] == asked.body["uuid"]


def test_snapshot_create_says_what_the_snapshot_holds(fake: FakeController, coldframe: Coldframe) -> None:
    fake.answer("POST", "/v1/vms/win11/snapshots", OPERATION, status=202)
    fake.answer("GET", SNAPSHOT_PATH, SNAPSHOT)
    done = coldframe("snapshot", "create", "win11")
    assert done.out == f"Snapshot before-update ({SNAPSHOT.uuid}) of win11 holds vda, nvram, tpm\n"


def test_the_vms_of_a_host_that_is_not_known_are_not_found(fake: FakeController, coldframe: Coldframe) -> None:
    problem = Problem(title="t", status=404, code="host-not-found", detail="No host kvm2 is enrolled")
    fake.answer("GET", "/v1/hosts/kvm2", problem, status=404, kind="application/problem+json")
    done = coldframe("vm", "list", "--host", "kvm2", "--json")
    assert (done.status, done.json["code"]) == (3, "host-not-found")


@pytest.mark.parametrize(
    ("command", "waits"),
    [("snapshot create", True), ("vm sync", True), ("doctor", True), ("vm list", False), ("snapshot protect", False)],
)
def test_no_wait_is_in_the_help_of_commands_that_start_an_operation(
    coldframe: Coldframe, command: str, waits: bool
) -> None:
    assert ("--no-wait" in coldframe(*command.split(), "--help").out) == waits


def test_no_wait_prints_the_operation_as_it_is(fake: FakeController, coldframe: Coldframe) -> None:
    fake.answer("POST", "/v1/vms/win11/snapshots", running(), status=202)
    done = coldframe("--no-wait", "snapshot", "create", "win11", "--json")
    assert msgspec.convert(done.json, Operation) == running()


def test_clone_prints_the_vms_that_were_made(fake: FakeController, coldframe: Coldframe) -> None:
    vm = Vm.example()
    told = {"vm": str(vm.uuid), "name": "a\n", "mode": "full", "host_files": ["nvram"], "left_out": ["vdz"]}
    ended = msgspec.structs.replace(OPERATION, kind="snapshot-clone", result={"clones": [told], "remarks": ["mind"]})
    fake.answer("POST", f"{SNAPSHOT_PATH}/clone", ended, status=202)
    fake.answer("GET", f"/v1/vms/{vm.uuid}", vm)
    done = coldframe("snapshot", "clone", str(SNAPSHOT.uuid), "a", "b", "--mode", "full", "--tpm", "copy", "--json")
    assert msgspec.convert(done.json["items"], list[Vm]) == [vm]
    asked = fake.sent("POST", f"{SNAPSHOT_PATH}/clone")
    assert asked.body == {"names": ["a", "b"], "mode": "full", "tpm": "copy", "uuids": []}
    assert "Idempotency-Key" in asked.headers
    shown = coldframe("snapshot", "clone", str(SNAPSHOT.uuid), "a").out
    assert shown == f"a\\n ({vm.uuid}) is a full clone with a new TPM, if it has one\nLeft out: vdz\nmind\n"


def test_revert_prints_the_operation_and_names_the_undo_point(fake: FakeController, coldframe: Coldframe) -> None:
    ended = msgspec.structs.replace(OPERATION, kind="snapshot-revert", result={"undo_point": str(UUID(int=1))})
    fake.answer("POST", f"{SNAPSHOT_PATH}/revert", ended, status=202)
    done = coldframe("snapshot", "revert", str(SNAPSHOT.uuid), "--volume", "vda", "--json")
    assert msgspec.convert(done.json, Operation) == ended
    assert fake.sent("POST", f"{SNAPSHOT_PATH}/revert").body == {"undo_point": True, "volumes": ["vda"]}
    told = coldframe("snapshot", "revert", str(SNAPSHOT.uuid), "--no-undo-point")
    assert f"coldframe snapshot revert {UUID(int=1)}" in told.out
    assert fake.asked[-1].body == {"undo_point": False, "volumes": None}


def test_revert_of_one_disk_says_that_host_files_were_left_alone(fake: FakeController, coldframe: Coldframe) -> None:
    result = {"host_files": "left-alone", "volumes": ["vda"], "kept": ["nvram"], "remarks": ["mind\nthe gap"]}
    fake.answer("POST", f"{SNAPSHOT_PATH}/revert", msgspec.structs.replace(OPERATION, result=result), status=202)
    assert coldframe("snapshot", "revert", str(SNAPSHOT.uuid), "--volume", "vda").out == (
        f"Reverted vda to snapshot {SNAPSHOT.uuid}; NVRAM and TPM were left alone\nmind\\nthe gap\n"
    )


def test_revert_says_what_it_took_away_and_what_it_kept(fake: FakeController, coldframe: Coldframe) -> None:
    result = {"host_files": "restored", "removed": ["tpm"], "kept": ["nvram"]}
    fake.answer("POST", f"{SNAPSHOT_PATH}/revert", msgspec.structs.replace(OPERATION, result=result), status=202)
    out = coldframe("snapshot", "revert", str(SNAPSHOT.uuid)).out
    assert out.splitlines()[1:] == ["Taken away, as the VM had none then: tpm", "Not in the snapshot, kept: nvram"]


def test_delete_prints_the_operation(fake: FakeController, coldframe: Coldframe) -> None:
    fake.answer("DELETE", SNAPSHOT_PATH, OPERATION, status=202)
    assert coldframe("snapshot", "delete", str(SNAPSHOT.uuid), "--json").json["uuid"] == str(OPERATION.uuid)
    assert coldframe("snapshot", "delete", str(SNAPSHOT.uuid)).out == f"Snapshot {SNAPSHOT.uuid} is deleted\n"


@pytest.mark.parametrize("status", [200, 202])
def test_ungroup_prints_the_snapshot_as_it_is_now(fake: FakeController, coldframe: Coldframe, status: int) -> None:
    fake.answer("POST", f"{SNAPSHOT_PATH}/ungroup", OPERATION if status == 202 else SNAPSHOT, status=status)
    fake.answer("GET", SNAPSHOT_PATH, SNAPSHOT)
    assert coldframe("snapshot", "ungroup", str(SNAPSHOT.uuid), "--json").json["uuid"] == str(SNAPSHOT.uuid)


@pytest.mark.parametrize("text", ["b9a7", "B9A7CF5E-3C3E", "win11/before-update", str(SNAPSHOT.uuid)])
def test_a_snapshot_is_found_by_uuid_prefix_or_name(fake: FakeController, coldframe: Coldframe, text: str) -> None:
    fake.page("/v1/snapshots", [SNAPSHOT])
    fake.page("/v1/vms/win11/snapshots", [SNAPSHOT])
    fake.answer("GET", SNAPSHOT_PATH, SNAPSHOT)
    assert coldframe("snapshot", "show", text, "--json").json["uuid"] == str(SNAPSHOT.uuid)


def test_an_unclear_snapshot_is_a_conflict_and_an_unknown_one_is_not_found(
    fake: FakeController, coldframe: Coldframe
) -> None:
    other = msgspec.structs.replace(SNAPSHOT, uuid=UUID("b9a70000-0000-4000-8000-000000000000"))
    fake.page("/v1/snapshots", [SNAPSHOT, other])
    unclear = coldframe("snapshot", "delete", "b9a7", "--json")
    assert (unclear.status, unclear.json["code"]) == (4, "snapshot-unclear")
    for text in ("0000", "nonsense"):
        unknown = coldframe("snapshot", "delete", text, "--json")
        assert (unknown.status, unknown.json["code"]) == (3, "snapshot-not-found")


def test_lists_are_read_page_after_page(fake: FakeController, coldframe: Coldframe) -> None:
    fake.answer("GET", "/v1/snapshots", {"items": [SNAPSHOT], "next": "c1"})
    fake.answer("GET", "/v1/snapshots", {"items": [SNAPSHOT], "next": None})
    done = coldframe("snapshot", "list", "--json")
    assert [one["name"] for one in done.json["items"]] == ["before-update", "before-update"]
    assert [one.query.get("after") for one in fake.asked] == [None, "c1"]


def test_snapshot_list_is_one_line_for_each(fake: FakeController, coldframe: Coldframe) -> None:
    fake.page("/v1/vms/win11/snapshots", [SNAPSHOT])
    assert coldframe("snapshot", "list", "win11").out == (
        "   NAME           VM     UUID                                  CREATED              STATE  HOST FILES  DISKS\n"
        f"*  before-update  win11  {SNAPSHOT.uuid}  2026-11-02 09:30:00  ready  complete    1\n"
    )


def test_snapshot_show_tells_everything(fake: FakeController, coldframe: Coldframe) -> None:
    fake.answer("GET", SNAPSHOT_PATH, SNAPSHOT)
    out = coldframe("snapshot", "show", str(SNAPSHOT.uuid)).out
    assert "host files    complete; expected nvram tpm\n" in out
    assert out.endswith("vda   kvm1  64.0 GiB  20.0 GiB   /var/lib/libvirt/images/win11.qcow2\n")


def test_host_add_sends_the_secret_of_the_file(fake: FakeController, coldframe: Coldframe, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    fake.answer("POST", "/v1/hosts", Host.example(), status=201)
    url = "https://kvm1.example.org:7701"
    done = coldframe("host", "add", "kvm1", url, "--agent-token-file", str(secret), "--json")
    assert done.json["name"] == "kvm1"
    assert fake.sent("POST", "/v1/hosts").body["agent_token"] == "s3cret"
    assert "s3cret" not in done.out


def test_host_list_show_and_remove(fake: FakeController, coldframe: Coldframe) -> None:
    fake.page("/v1/hosts", [Host.example()])
    fake.answer("GET", "/v1/hosts/kvm1", Host.example())
    fake.answer("DELETE", "/v1/hosts/kvm1", b"", status=204)
    assert "kvm1  https://kvm1.example.org:7701  yes" in coldframe("host", "list").out
    assert "start hook  ok\n" in coldframe("host", "show", "kvm1").out
    assert coldframe("host", "remove", "kvm1", "--json").json["name"] == "kvm1"
    assert coldframe("host", "remove", "kvm1").out == "Host kvm1 is removed\n"


def test_vm_list_show_and_sync(fake: FakeController, coldframe: Coldframe) -> None:
    vm = Vm.example()
    fake.page("/v1/vms", [vm])
    fake.answer("GET", "/v1/vms/win11", vm)
    fake.answer("GET", "/v1/hosts/kvm1", Host.example())
    fake.answer("POST", "/v1/vms/win11/sync", OPERATION, status=202)
    fake.answer("DELETE", f"/v1/vms/{vm.uuid}", vm)
    assert coldframe("vm", "list", "--host", "kvm1", "--json").json["items"][0]["name"] == "win11"
    assert fake.asked[-1].query["host"] == "kvm1"
    assert "nvram      528.0 KiB  2026-11-02 09:30:00  -" in coldframe("vm", "show", "win11").out
    assert coldframe("vm", "sync", "win11", "--json").json["kind"] == "snapshot-create"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"host_files": {"nvram": "ab", "tpm": "cd"}, "failed": [], "skipped": None}, "are synced: nvram, tpm\n"),
        ({"host_files": {}, "failed": [], "skipped": None}, "Host files of win11 are synced\n"),
        ({"host_files": {}, "failed": [], "skipped": "the VM is running"}, "Nothing was copied: the VM is running\n"),
        (
            {"host_files": {"tpm": "cd"}, "failed": [{"type": "nvram", "reason": "it is empty"}], "skipped": None},
            "The nvram was not copied: it is empty\nHost files of win11 are synced: tpm\n",
        ),
        (
            {"host_files": {}, "failed": [{"type": "nvram", "reason": "it is empty"}], "skipped": None},
            "The nvram was not copied: it is empty\n",
        ),
    ],
)
def test_vm_sync_says_what_was_copied_and_what_was_not(
    fake: FakeController, coldframe: Coldframe, result: dict[str, object], words: str
) -> None:
    ended = msgspec.structs.replace(OPERATION, kind="vm-sync", result=result)
    fake.answer("POST", "/v1/vms/win11/sync", ended, status=202)
    done = coldframe("vm", "sync", "win11")
    assert (done.status, done.out.endswith(words), done.out.count("\n")) == (0, True, words.count("\n"))


def test_backup_create_of_a_running_vm_says_whose_copies_they_are(fake: FakeController, coldframe: Coldframe) -> None:
    result = {"source": "last-sync", "as_of": "2026-11-02T09:30:00Z", "reason": "the VM is running"}
    ended = msgspec.structs.replace(OPERATION, kind="vm-backup-host-files", result=result)
    fake.answer("POST", "/v1/vms/win11/backup-host-files", ended, status=202)
    fake.page("/v1/backup-files", [BackupFile.example()])
    done = coldframe("backup", "create", "win11", "--owner", str(BackupFile.example().owner_uuid))
    told = "They are the copies from 2026-11-02T09:30:00Z, when it last stopped: the VM is running"
    assert done.out.splitlines()[-1] == told


def test_backup_create_prints_the_files_of_all_owners(fake: FakeController, coldframe: Coldframe) -> None:
    owner = str(BackupFile.example().owner_uuid)
    fake.answer("POST", "/v1/vms/win11/backup-host-files", OPERATION, status=202)
    fake.page("/v1/backup-files", [BackupFile.example()])
    done = coldframe("backup", "create", "win11", "--owner", owner, "--owner", owner, "--json")
    assert [one["type"] for one in done.json["items"]] == ["nvram"]
    assert fake.sent("POST", "/v1/vms/win11/backup-host-files").body == {"owners": [owner, owner]}
    assert fake.asked[-1].query["owner"] == owner


def test_backup_export_writes_the_bytes_or_nothing(fake: FakeController, coldframe: Coldframe, tmp_path: Path) -> None:
    data, target = b"_FVH" * 300_000, tmp_path / "win11.fd"
    good = msgspec.structs.replace(BackupFile.example(), sha256=hashlib.sha256(data).hexdigest())
    fake.answer("GET", f"/v1/backup-files/{good.uuid}", BackupFile.example())
    fake.answer("GET", f"/v1/backup-files/{good.uuid}", good)
    fake.answer("GET", f"/v1/backup-files/{good.uuid}/content", data, kind="application/octet-stream")
    damaged = coldframe("backup", "export", str(good.uuid), str(target), "--json")
    assert (damaged.status, damaged.json["code"], list(tmp_path.iterdir())) == (1, "bytes-differ", [])
    assert coldframe("backup", "export", str(good.uuid), str(target)).status == 0
    assert target.read_bytes() == data
    nowhere = coldframe("backup", "export", str(good.uuid), str(tmp_path / "no" / "file"))
    assert (nowhere.status, "No such file" in nowhere.err) == (1, True)


def test_operation_list_show_wait_and_cancel(fake: FakeController, coldframe: Coldframe) -> None:
    fake.page("/v1/operations", [OPERATION])
    fake.answer("GET", OPERATION_PATH, OPERATION)
    fake.answer("DELETE", OPERATION_PATH, OPERATION, status=200)
    assert coldframe("operation", "list", "--state", "running", "--json").json["items"][0]["uuid"] == str(
        OPERATION.uuid
    )
    assert fake.asked[-1].query["state"] == "running"
    assert f"snapshot   {SNAPSHOT.uuid}\n" in coldframe("operation", "show", str(OPERATION.uuid)).out
    assert coldframe("operation", "wait", str(OPERATION.uuid), "--json").json["state"] == "succeeded"
    assert coldframe("operation", "cancel", str(OPERATION.uuid), "--json").json["uuid"] == str(OPERATION.uuid)


def test_events_are_listed_and_followed(fake: FakeController, coldframe: Coldframe) -> None:
    one = msgspec.json.encode(Event.example())
    stream = b": hello\n\nid: 12\nevent: snapshot.ready\ndata: " + one + b"\n\ndata: " + one + b"\n\n"
    fake.answer("GET", "/v1/events", stream, kind="text/event-stream")
    assert [event["seq"] for event in coldframe("events", "--json").json["items"]] == [12, 12]
    assert "12   2026-11-02 09:30:00  snapshot.ready" in coldframe("events").out
    followed = coldframe("events", "--follow", "--after", "11", "--json")
    assert [msgspec.json.decode(line)["seq"] for line in followed.out.splitlines()] == [12, 12]
    assert fake.asked[-1].query["after"] == "11"


def test_token_create_prints_the_secret_alone(fake: FakeController, coldframe: Coldframe) -> None:
    made = NewToken(token=Token.example(), secret="cf_secret")
    fake.answer("POST", "/v1/tokens", made, status=201)
    fake.page("/v1/tokens", [Token.example()])
    fake.answer("DELETE", f"/v1/tokens/{made.token.uuid}", b"", status=204)
    assert coldframe("token", "create", "ansible", "--role", "operator").out == "cf_secret\n"
    assert coldframe("token", "create", "a", "--role", "reader", "--expires", "2027-01-02").status == 0
    assert fake.asked[-1].body["expires_at"] == "2027-01-02T00:00:00Z"
    assert "ansible  operator" in coldframe("token", "list").out
    assert coldframe("token", "revoke", str(made.token.uuid), "--json").json["name"] == "ansible"


def test_edit_protect_and_unprotect_send_only_what_was_asked_and_the_version_they_saw(
    fake: FakeController, coldframe: Coldframe
) -> None:
    labelled = msgspec.structs.replace(SNAPSHOT, labels={"keep": "1", "drop": "2"})
    fake.answer("GET", SNAPSHOT_PATH, labelled)
    fake.answer("PATCH", SNAPSHOT_PATH, SNAPSHOT)
    uuid = str(SNAPSHOT.uuid)
    assert "is changed" in coldframe("snapshot", "edit", uuid, "--label", "new=3", "--remove-label", "drop").out
    assert "is protected" in coldframe("snapshot", "protect", uuid).out
    assert "no longer protected" in coldframe("snapshot", "unprotect", uuid).out
    bodies = [one.body for one in fake.asked if one.method == "PATCH"]
    nothing = {"name": None, "description": None, "labels": None, "protected": None}
    assert bodies[0] == nothing | {"labels": {"keep": "1", "new": "3"}}
    assert bodies[1:] == [nothing | {"protected": True}, nothing | {"protected": False}]
    assert coldframe("snapshot", "edit", uuid).status == 2


def test_vm_volumes_prints_one_line_for_each_file(fake: FakeController, coldframe: Coldframe) -> None:
    fake.page("/v1/vms/win11/volumes", [VmVolume.example()])
    done = coldframe("vm", "volumes", "win11")
    assert len(done.out.splitlines()) == 2
    assert "1 of 1" in done.out
    assert coldframe("vm", "volumes", "win11", "--json").json["items"][0]["depth"] == 1


def test_verify_exits_1_where_something_is_wrong_and_0_where_nothing_is(
    fake: FakeController, coldframe: Coldframe
) -> None:
    counts = {"snapshots": 1, "volumes": 2, "found": 1}
    bad = msgspec.structs.replace(OPERATION, result={**counts, "findings": [Finding.example()]})
    well = msgspec.structs.replace(OPERATION, result={**counts, "findings": []})
    fake.answer("POST", f"{SNAPSHOT_PATH}/verify", bad, status=202)
    fake.answer("POST", "/v1/vms/win11/verify", well, status=202)
    fake.answer("POST", "/v1/verify", well, status=202)
    done = coldframe("snapshot", "verify", str(SNAPSHOT.uuid), "--json")
    assert (done.status, done.json["items"][0]["code"]) == (1, "frozen-file-altered")
    assert "ERROR  frozen-file-altered  kvm1: " in coldframe("snapshot", "verify", str(SNAPSHOT.uuid)).out
    done = coldframe("snapshot", "verify", "--vm", "win11", "--quick")
    assert (done.status, done.out) == (0, "1 snapshot(s) with 2 frozen file(s) are as they were taken\n")
    assert fake.asked[-1].query == {"deep": "false"}
    assert coldframe("snapshot", "verify", "--all", "--json").json == {"items": []}
    assert coldframe("snapshot", "verify").status == 2


def test_doctor_exits_1_while_something_is_wrong_and_0_once_all_is_repaired(
    fake: FakeController, coldframe: Coldframe
) -> None:
    safe = msgspec.structs.replace(Finding.example(), safe=True)
    done = msgspec.structs.replace(safe, done="It is removed")
    note = msgspec.structs.replace(safe, severity="info", safe=False)
    fake.page("/v1/doctor", [safe])
    fake.answer(
        "POST", "/v1/doctor/repair", msgspec.structs.replace(OPERATION, result={"items": [note, done]}), status=202
    )
    looked = coldframe("doctor")
    assert looked.status == 1
    assert "[doctor --repair does this]" in looked.out
    assert coldframe("doctor", "--json").json["items"][0]["safe"] is True
    mended = coldframe("doctor", "--repair")
    assert mended.status == 0
    assert [line.split()[0] for line in mended.out.splitlines()[::2]] == ["INFO", "REPAIRED", "Nothing"]
