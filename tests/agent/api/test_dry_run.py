"""Dry runs over the agent's HTTP: each route that changes anything plans, and nothing on the host is touched."""

import hashlib
from typing import Any
from uuid import uuid4

import msgspec

from agent.web.application import ROUTES
from agent.wire.plan import Plan
from agent.wire.transaction import SnapshotRequest
from tests.agent.api.conftest import VM, Host, Serving
from tests.agent.transactions.rig import nvram
from tests.agent.transactions.test_foresight import trace

NVRAM = nvram(b"B")
HASH = {"X-Content-SHA256": hashlib.sha256(NVRAM).hexdigest()}


async def test_every_changing_route_plans_and_touches_nothing(host: Host, serving: Serving) -> None:
    """A new route needs a line here where it takes a body or stands on something."""
    prepared = uuid4()
    await serving.client.put_transaction(prepared, SnapshotRequest(vm=VM, snapshot=uuid4()))
    image = str(host.root / "images" / "vda.qcow2")
    bodies: dict[str, Any] = {
        "PUT /v1/vms/{uuid}/host-files/{type}": NVRAM,
        "PUT /v1/transactions/{id}/host-files/{type}": NVRAM,
        "PUT /v1/transactions/{id}/images/{target}/{position}": b"",
        "PUT /v1/transactions/{id}": {"kind": "snapshot", "vm": str(VM), "snapshot": str(uuid4())},
        "POST /v1/leftovers/remove": {"paths": [image]},
        "POST /v1/images/remove": {"images": [{"target": "vda", "path": image}]},
    }
    before, known = trace(host.root), await serving.client.transactions()
    would = {}
    for route in [one for one in serving.app[ROUTES] if one.changes]:
        path = route.path.replace("{uuid}", str(VM)).replace("{id}", str(prepared)).replace("{type}", "nvram")
        path = path.replace("{target}", "vda").replace("{position}", "0")
        assert "{" not in path, f"{route.name}: say here what stands in its path"
        assert route.body_media_type is None or route.name in bodies, f"{route.name}: give it a body here"
        body = bodies.get(route.name)
        more: dict[str, Any] = {"data": body, "headers": HASH} if isinstance(body, bytes) else {"json": body}
        answer = await serving.http.request(route.method, f"{path}?dry_run=true", **(more if body is not None else {}))
        assert answer.status == 200, (route.name, await answer.text())
        would[route.name] = msgspec.json.decode(await answer.read(), type=Plan).would
    assert trace(host.root) == before
    assert await serving.client.transactions() == known
    assert would["POST /v1/transactions/{id}/commit"] == "succeed"
    assert would["POST /v1/images/remove"] == "be-refused"
    assert (await serving.client.commit(prepared)).state == "committed"


async def test_what_is_not_clear_is_refused_and_not_done(host: Host, serving: Serving) -> None:
    for text in ("dry_run=maybe", "dry_run=true&dry_run=true"):
        answer = await serving.http.post(f"/v1/vms/{VM}/accept-blank?{text}")
        assert answer.status == 400
    assert not (host.config.state_dir / "accept-blank" / str(VM)).exists()
    assert (await serving.http.post("/v1/images/check?dry_run=true", json={"paths": ["/x"]})).status == 400
