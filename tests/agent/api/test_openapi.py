"""The agent's document: every route of the design is there, and who may call it."""

import pytest

from agent.web.application import DOCUMENT, ROUTES
from tests.agent.api.conftest import Serving

ROUTES_OF_THE_DESIGN = """
GET /healthz
GET /metrics
GET /openapi.json
GET /docs
GET /v1/host
GET /v1/vms
GET /v1/vms/{uuid}
GET /v1/vms/{uuid}/disks
GET /v1/vms/{uuid}/host-files
GET /v1/vms/{uuid}/host-files/{type}
PUT /v1/vms/{uuid}/host-files/{type}
PUT /v1/transactions/{id}
GET /v1/transactions/{id}
GET /v1/transactions/{id}/host-files/{type}
PUT /v1/transactions/{id}/host-files/{type}
POST /v1/transactions/{id}/commit
POST /v1/transactions/{id}/abort
POST /v1/transactions/{id}/renew
GET /v1/transactions
GET /v1/events
"""


async def test_every_route_is_served_and_documented(serving: Serving) -> None:
    documented = {
        f"{method.upper()} {path}" for path, methods in serving.app[DOCUMENT]["paths"].items() for method in methods
    }
    assert set(ROUTES_OF_THE_DESIGN.split("\n")[1:-1]) <= documented
    served = {
        f"{one.method} {one.resource.canonical}"
        for one in serving.app.router.routes()
        if one.resource is not None and one.method != "HEAD"
    }
    assert served == documented


@pytest.mark.case("X1")
async def test_every_route_but_health_answers_401_without_a_credential(serving: Serving) -> None:
    for one in serving.app[ROUTES]:
        path = one.path.replace("{uuid}", "x").replace("{id}", "x").replace("{type}", "x")
        response = await serving.stranger.request(one.method, path)
        assert response.status == (200 if one.path == "/healthz" else 401), one.name
        response = await serving.stranger.request(one.method, path, headers={"Authorization": "Bearer wrong"})
        assert response.status == (200 if one.path == "/healthz" else 401), one.name
