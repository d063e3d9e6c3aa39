"""Commands about hosts that move, VMs that move between them, and host files that are put back."""

from pathlib import Path

import msgspec

from agent.wire.fleet import Host
from agent.wire.operation import Operation
from tests.controller.cli.conftest import Coldframe
from tests.controller.cli.fake import FakeController

OPERATION = Operation.example()


def test_host_set_sends_what_is_to_change_and_nothing_else(
    fake: FakeController, coldframe: Coldframe, tmp_path: Path
) -> None:
    secret = tmp_path / "agent.token"
    secret.touch(mode=0o600)
    secret.write_text("new\n")
    fake.answer("PATCH", "/v1/hosts/kvm1", Host.example())
    done = coldframe(
        "host", "set", "kvm1", "--agent-url", "https://other:7701", "--agent-token-file", str(secret), "--json"
    )
    assert msgspec.convert(done.json, Host) == Host.example()
    nothing = {"name": None, "url": None, "agent_token": None, "fingerprint": None}
    assert fake.asked[-1].body == nothing | {"url": "https://other:7701", "agent_token": "new"}
    assert coldframe("host", "set", "kvm1", "--rename", "new", "--fingerprint", "").out == "Host kvm1 is changed\n"
    assert fake.asked[-1].body == nothing | {"name": "new", "fingerprint": ""}
    assert coldframe("host", "set", "kvm1").status == 2


def test_vm_place_says_where_the_vm_is_and_what_is_left_behind(fake: FakeController, coldframe: Coldframe) -> None:
    result = {"host": "kvm2", "left_on": ["kvm1"], "remarks": ["host kvm1 still defines it"]}
    ended = msgspec.structs.replace(OPERATION, kind="vm-place", result=result)
    fake.answer("POST", "/v1/vms/win11/place", ended, status=202)
    assert coldframe("vm", "place", "win11", "kvm2").out == "win11 is on kvm2\nhost kvm1 still defines it\n"
    assert fake.asked[-1].body == {"host": "kvm2", "force": False}
    assert msgspec.convert(coldframe("vm", "place", "win11", "kvm2", "--force", "--json").json, Operation) == ended
    assert fake.asked[-1].body == {"host": "kvm2", "force": True}


def test_vm_restore_host_files_says_what_was_restored_and_where_the_rest_is(
    fake: FakeController, coldframe: Coldframe
) -> None:
    where = "/v1/vms/win11/restore-host-files"
    result = {"restored": ["nvram", "tpm"], "kept_as": str(OPERATION.uuid)}
    fake.answer("POST", where, msgspec.structs.replace(OPERATION, result=result), status=202)
    fake.answer("POST", where, msgspec.structs.replace(OPERATION, result={"restored": []}), status=202)
    out = coldframe("vm", "restore-host-files", "win11", "--type", "nvram", "--type", "tpm").out
    assert out.splitlines() == [
        "Restored nvram and tpm of win11",
        f"What was replaced is kept: coldframe backup list --owner {OPERATION.uuid}",
    ]
    assert fake.asked[-1].body == {"types": ["nvram", "tpm"], "snapshot": None, "backup_file": None}
    assert "--type" in coldframe("vm", "restore-host-files", "win11", "--backup", str(OPERATION.uuid)).out
    assert fake.asked[-1].body == {"types": None, "snapshot": None, "backup_file": str(OPERATION.uuid)}
