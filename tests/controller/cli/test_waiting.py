"""Waiting: the bar on a terminal, an interruption, and a controller that is away for a moment."""

from uuid import UUID

import msgspec
import pytest

from agent.wire.operation import WAITS_FOR_STOP, Operation, Progress
from agent.wire.problem import Problem
from agent.wire.snapshot import Snapshot
from controller.cli import waiting
from tests.controller.cli.conftest import Coldframe
from tests.controller.cli.fake import FakeController

OPERATION = Operation.example()
RUNNING = msgspec.structs.replace(
    OPERATION, state="running", step="merge [red]vda", progress=Progress(done_bytes=1, total_bytes=4, percent=25)
)
PATH = f"/v1/operations/{OPERATION.uuid}"
WAIT = ("operation", "wait", str(OPERATION.uuid))


def test_the_deletions_that_come_with_an_operation_are_waited_for_and_do_not_change_how_it_ends(
    fake: FakeController, coldframe: Coldframe
) -> None:
    deletion = UUID("00000000-0000-4000-8000-00000000000d")
    ended = msgspec.structs.replace(Operation.example(), result={"undo_point": None, "deletions": [str(deletion)]})
    working = msgspec.structs.replace(Operation.example(), uuid=deletion, state="running")
    problem = Problem(title="t", status=500, code="no-space", detail="There is no room")
    failed = msgspec.structs.replace(working, state="failed", error=problem)
    fake.page("/v1/snapshots", [Snapshot.example()])
    fake.answer("POST", f"/v1/snapshots/{Snapshot.example().uuid}/revert", ended, status=202)
    fake.answer("GET", f"/v1/operations/{deletion}", working)
    fake.answer("GET", f"/v1/operations/{deletion}", failed)
    done = coldframe("snapshot", "revert", str(Snapshot.example().uuid), "--json")
    assert (done.status, done.json["state"]) == (0, "succeeded")
    assert "There is no room" in done.err


def test_a_terminal_gets_a_bar_on_stderr_and_stdout_stays_one_document(
    fake: FakeController, coldframe: Coldframe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for answer in (RUNNING, RUNNING, OPERATION):
        fake.answer("GET", PATH, answer)
    done = coldframe(*WAIT, "--json")
    assert (done.status, done.json["state"]) == (0, "succeeded")
    assert "merge [red]vda" in done.err
    assert [one.query.get("wait") for one in fake.asked] == [None, "1", "1"]


def test_without_a_terminal_nothing_is_drawn_and_one_request_waits_long(
    fake: FakeController, coldframe: Coldframe
) -> None:
    fake.answer("GET", PATH, RUNNING)
    fake.answer("GET", PATH, OPERATION)
    assert coldframe(*WAIT).err == ""
    assert fake.asked[-1].query["wait"] == "20"


def test_an_interruption_says_how_to_go_on(
    fake: FakeController, coldframe: Coldframe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Operation:
        raise KeyboardInterrupt

    fake.answer("POST", "/v1/vms/win11/snapshots", RUNNING, status=202)
    monkeypatch.setattr(waiting, "_ask", interrupted)
    done = coldframe("snapshot", "create", "win11")
    assert (done.status, done.out) == (130, "")
    assert f"coldframe operation wait {OPERATION.uuid}" in done.err


def test_a_controller_that_restarts_is_asked_again(
    fake: FakeController, coldframe: Coldframe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "RETRY_S", 0)
    fake.answer("GET", PATH, RUNNING)
    for _ in range(2):
        fake.answer("GET", PATH, b"it restarts", status=502, kind="text/plain")
    fake.answer("GET", PATH, OPERATION)
    assert coldframe(*WAIT, "--json").json["state"] == "succeeded"
    assert len(fake.asked) == 4


def test_a_controller_that_stays_away_is_told_with_how_to_ask_later(
    fake: FakeController, coldframe: Coldframe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE_S", 0)
    fake.answer("POST", "/v1/vms/win11/snapshots", RUNNING, status=202)
    fake.answer("GET", PATH, b"<html>", status=502, kind="text/html")
    done = coldframe("snapshot", "create", "win11", "--json")
    assert (done.status, done.json["code"]) == (5, "controller-unreachable")
    assert f"coldframe operation wait {OPERATION.uuid}" in done.json["detail"]


def test_a_delete_that_waits_for_its_vm_says_so_and_does_not_hang(fake: FakeController, coldframe: Coldframe) -> None:
    snapshot = "b9a7cf5e-3c3e-4f5c-8a0d-0c7c8f6f2b11"
    queued = msgspec.structs.replace(OPERATION, state="queued", step="", ended_at=None)
    fake.answer("DELETE", f"/v1/snapshots/{snapshot}", queued, status=202)
    fake.answer("GET", PATH, msgspec.structs.replace(queued, step=WAITS_FOR_STOP))
    done = coldframe("snapshot", "delete", snapshot)
    assert (done.status, "worked off when the VM stops" in done.out) == (0, True)
    assert f"coldframe operation cancel {OPERATION.uuid}" in done.out


def test_waiting_for_a_parked_operation_by_name_waits_to_its_end(fake: FakeController, coldframe: Coldframe) -> None:
    parked = msgspec.structs.replace(OPERATION, state="queued", step=WAITS_FOR_STOP, ended_at=None)
    for answer in (parked, parked, OPERATION):
        fake.answer("GET", PATH, answer)
    done = coldframe(*WAIT, "--json")
    assert (done.status, done.json["state"]) == (0, "succeeded")
