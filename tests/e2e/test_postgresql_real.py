"""The whole product with its records in PostgreSQL: real agent, VM and controller, and a server that goes and comes."""

import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Stack, change_at_rest, run_once, seen
from tests.lab.daemons import AgentDaemon, ControllerDaemon
from tests.lab.host import LabHost
from tests.lab.postgresql import Postgresql
from tests.lab.waiting import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(580)]
ENDED = {"succeeded", "failed", "cancelled"}


def status(controller: ControllerDaemon, path: str) -> int:
    connection = controller.connection(timeout_s=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def ended(controller: ControllerDaemon) -> list[dict[str, Any]]:
    """Wait until every operation has ended; newest first."""

    def look() -> list[dict[str, Any]] | None:
        try:
            found: list[dict[str, Any]] = controller.get("/v1/operations")["items"]
        except (OSError, http.client.HTTPException):
            return None
        return found if all(one["state"] in ENDED for one in found) else None

    return wait_until("the end of all operations", look, 120, every_s=0.2)


def do(stack: Stack, server: Postgresql, *words: str) -> None:
    """Have work done while the server is killed and started in the middle of it; asked for again where it failed."""
    before = len(ended(stack.controller))
    stack.controller.coldframe(*words, "--no-wait")
    server.kill()
    assert status(stack.controller, "/healthz") == 200
    assert status(stack.controller, "/readyz") == 503
    server.start()
    newest = ended(stack.controller)[0]
    assert len(ended(stack.controller)) == before + 1  # what was answered for is not lost
    if newest["state"] == "failed":
        assert newest["error"]["code"] in {"database-failed", "commit-unconfirmed"}, newest
        stack.coldframe(*words)


@pytest.mark.case("F5")
def test_snapshot_revert_and_delete_are_done_though_the_server_is_killed_in_the_middle_of_each(
    lab_ready: None, postgresql: Postgresql, tmp_path: Path
) -> None:
    url = postgresql.url(postgresql.create(), port=postgresql.port)
    with (
        LabHost("postgresql") as host,
        AgentDaemon(host) as agent,
        ControllerDaemon(tmp_path, database=url) as controller,
    ):
        controller.add_host(agent)
        stack, guest = Stack(host, agent, controller), run_once(host.define_guest("on-postgresql"))
        stack.known(guest)
        first = seen(guest)
        do(stack, postgresql, "snapshot", "create", str(guest.uuid), "first")
        (taken,) = controller.get(f"/v1/vms/{guest.uuid}/snapshots")["items"]
        change_at_rest(guest, b"later")
        assert seen(guest) != first
        do(stack, postgresql, "snapshot", "revert", taken["uuid"])
        assert seen(guest) == first

        postgresql.stop()
        refused = controller.coldframe("vm", "list", "--json", check=False)
        assert json.loads(refused.stdout)["code"] == "database-failed"
        postgresql.start()
        assert status(controller, "/readyz") == 200

        for snapshot in reversed(controller.get(f"/v1/vms/{guest.uuid}/snapshots")["items"]):
            do(stack, postgresql, "snapshot", "delete", snapshot["uuid"])
        assert controller.get(f"/v1/vms/{guest.uuid}/snapshots")["items"] == []
        assert seen(guest) == first
        assert json.loads(controller.coldframe("doctor", "--json").stdout)["items"] == []
        assert controller.run("migrate").stdout == "The database is up to date\n"
        assert controller.run("check").stdout == "The settings can be used\n"
        guest.start()
        guest.destroy()
        guest.wait_off()
