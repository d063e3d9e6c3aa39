"""How failures end: the exit status, the Problem on stdout, and words for people on stderr."""

from pathlib import Path

import msgspec
import pytest

from agent.wire.operation import Operation
from agent.wire.problem import Problem
from controller.cli.app import run
from tests.controller.cli.conftest import Coldframe
from tests.controller.cli.fake import FakeController

OPERATION = Operation.example()


def problem(status: int, code: str = "some-code") -> Problem:
    return msgspec.structs.replace(Problem.example(), status=status, code=code)


@pytest.mark.parametrize(
    ("status", "expected"), [(404, 3), (409, 4), (412, 4), (502, 5), (504, 5), (401, 1), (500, 1), (507, 1), (400, 2)]
)
def test_a_refused_call_prints_the_problem_and_exits_by_its_status(
    fake: FakeController, coldframe: Coldframe, status: int, expected: int
) -> None:
    fake.answer("GET", "/v1/vms/win11", problem(status), status=status, kind="application/problem+json")
    as_json = coldframe("vm", "show", "win11", "--json")
    assert (as_json.status, as_json.err) == (expected, "")
    assert msgspec.convert(as_json.json, Problem) == problem(status)
    for_people = coldframe("vm", "show", "win11")
    assert (for_people.status, for_people.out) == (expected, "")
    assert for_people.err.startswith("Error: Domain win11 is running; nothing was touched.")
    assert ("--token-file" in for_people.err) == (status == 401)


@pytest.mark.parametrize(("error", "expected", "code"), [(problem(409, "domain-running"), 4, "domain-running")])
def test_a_failed_operation_ends_like_a_refused_call(
    fake: FakeController, coldframe: Coldframe, error: Problem, expected: int, code: str
) -> None:
    failed = msgspec.structs.replace(OPERATION, state="failed", error=error, result={})
    fake.answer("POST", "/v1/vms/win11/snapshots", failed, status=202)
    done = coldframe("snapshot", "create", "win11", "--json")
    assert (done.status, done.json["code"]) == (expected, code)


def test_a_cancelled_operation_is_a_failure(fake: FakeController, coldframe: Coldframe) -> None:
    stopped = msgspec.structs.replace(OPERATION, state="cancelled", result={})
    fake.answer("GET", f"/v1/operations/{OPERATION.uuid}", stopped)
    done = coldframe("operation", "wait", str(OPERATION.uuid), "--json")
    assert (done.status, done.json["code"]) == (1, "operation-cancelled")


def test_nobody_there_exits_5_and_says_how_to_find_the_controller(coldframe: Coldframe) -> None:
    done = coldframe("vm", "list", "--url", "http://127.0.0.1:1")
    assert (done.status, done.out) == (5, "")
    assert "No controller answers at http://127.0.0.1:1: Connection refused" in done.err
    assert coldframe("vm", "list", "--json", "--url", "nonsense").json["code"] == "controller-unreachable"


def test_tls_asked_of_a_controller_without_it_is_told_as_such(fake: FakeController, coldframe: Coldframe) -> None:
    done = coldframe("vm", "list", "--url", fake.url.replace("http:", "https:"))
    assert (done.status, "TLS: " in done.err, "Operation not permitted" in done.err) == (5, True, False)


def test_a_token_that_is_not_known_is_named(fake: FakeController, coldframe: Coldframe, tmp_path: Path) -> None:
    fake.answer("GET", "/v1/vms", problem(401), status=401, kind="application/problem+json")
    file = tmp_path / "old.token"
    file.touch(mode=0o600)
    file.write_text("cf_old\n")
    done = coldframe("vm", "list", "--token-file", str(file))
    assert (done.status, done.err.splitlines()[-1]) == (
        1,
        f"The token in {file} was refused; give another with --token-file",
    )


def test_somebody_else_there_exits_5(fake: FakeController, coldframe: Coldframe) -> None:
    fake.answer("GET", "/v1/vms", b"<html>", kind="text/html")
    assert coldframe("vm", "list", "--json").json["code"] == "not-a-controller"
    fake.answer("GET", "/v1/hosts", b"", status=302)
    assert coldframe("host", "list").status == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ("snapshot", "create"),
        ("snapshot", "create", "win11", "--label", "nonsense"),
        ("snapshot", "create", "win11", "--host-files", "perhaps"),
        ("backup", "show", "no-uuid"),
        ("no-such-command",),
        ("vm", "list", "--no-such-option"),
    ],
)
def test_a_wrong_command_line_exits_2_and_asks_nobody(
    fake: FakeController, coldframe: Coldframe, arguments: tuple[str, ...]
) -> None:
    assert coldframe(*arguments).status == 2
    as_json = coldframe(*arguments, "--json")
    assert (as_json.status, as_json.json["code"]) == (2, "usage")
    assert fake.asked == []


def test_the_token_of_the_file_is_sent(
    fake: FakeController, coldframe: Coldframe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("cf_abc\n")
    file.chmod(0o600)
    fake.page("/v1/vms", [])
    coldframe("vm", "list", "--token-file", str(file))
    assert fake.asked[-1].headers["Authorization"] == "Bearer cf_abc"
    monkeypatch.setenv("COLDFRAME_TOKEN_FILE", str(file))
    coldframe("vm", "list")
    assert fake.asked[-1].headers["Authorization"] == "Bearer cf_abc"
    file.chmod(0o644)
    assert "chmod 600" in coldframe("vm", "list").err
    assert coldframe("vm", "list", "--json").json["code"] == "settings"


def test_a_name_cannot_leave_its_place_in_the_path(fake: FakeController, coldframe: Coldframe) -> None:
    coldframe("vm", "show", "../hosts?x=ä#")
    assert fake.asked[-1].path == "/v1/vms/..%2Fhosts%3Fx%3D%C3%A4%23"


@pytest.mark.parametrize("command", [("vm", "show", ""), ("snapshot", "tree", ""), ("snapshot", "show", "/x")])
def test_an_empty_name_is_a_usage_error_and_asks_nobody(
    fake: FakeController, coldframe: Coldframe, command: tuple[str, ...]
) -> None:
    done = coldframe(*command)
    assert (done.status, "is empty; nothing was changed" in done.err, fake.asked) == (2, True, [])


def test_a_name_that_is_refused_is_a_usage_error(fake: FakeController, coldframe: Coldframe) -> None:
    problem = Problem(title="t", status=422, code="name-invalid", detail="VM name 'a/b' is refused")
    fake.answer("POST", "/v1/vms/win11/snapshots", problem, status=422, kind="application/problem+json")
    assert coldframe("snapshot", "create", "win11", "a/b", "--json").status == 2


def test_an_unforeseen_error_is_no_traceback_on_stdout(coldframe: Coldframe, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("controller.cli.session.Session.show", broken)
    monkeypatch.setattr("controller.cli.client.Client.items", lambda *_a, **_k: [])
    done = coldframe("vm", "list", "--json")
    assert (done.status, done.json["code"]) == (1, "internal-error")
    assert "a secret" not in done.out


def test_options_before_and_after_the_command_mean_the_same(fake: FakeController, coldframe: Coldframe) -> None:
    fake.page("/v1/vms", [])
    assert coldframe("--json", "vm", "list").json == coldframe("vm", "list", "--json").json == {"items": []}


def test_version_and_help_succeed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("coldframe ")
    assert run(["snapshot", "create", "--help"]) == 0
