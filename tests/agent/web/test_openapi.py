"""The document and the declaration it is made from."""

import pytest
from aiohttp import web

from agent.web.application import DOCUMENT, ROUTES
from agent.web.call import Call
from agent.web.routes import route


def test_every_route_is_in_the_document(app: web.Application) -> None:
    served = {
        (one.method.lower(), one.resource.canonical)
        for one in app.router.routes()
        if one.resource is not None and one.method != "HEAD"
    }
    documented = {(method, path) for path, methods in app[DOCUMENT]["paths"].items() for method in methods}
    assert served == documented == {(one.method.lower(), one.path) for one in app[ROUTES]}


def test_the_document_says_types_codes_roles_and_limits(app: web.Application) -> None:
    paths = app[DOCUMENT]["paths"]
    listing = {one["name"]: one for one in paths["/v1/things"]["get"]["parameters"]}
    assert listing["limit"]["schema"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
        "default": 100,
        "description": "The most items to return",
    }
    assert paths["/v1/things"]["post"]["x-role"] == "operator"
    assert paths["/v1/things"]["post"]["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/MakeThing"
    }
    assert paths["/v1/things/{uuid}"]["get"]["responses"]["404"]["description"] == "no-golden-thing, no-thing"
    assert "412" in paths["/v1/things/{uuid}"]["put"]["responses"]
    assert "413" in paths["/v1/bytes"]["put"]["responses"]
    assert paths["/healthz"]["get"]["security"] == []


def test_operation_ids_are_unique(app: web.Application) -> None:
    ids = [one["operationId"] for methods in app[DOCUMENT]["paths"].values() for one in methods.values()]
    assert len(ids) == len(set(ids))


async def documented(call: Call, unfilled: str) -> None:
    """Take a parameter that the path does not have."""


async def undocumented(call: Call) -> None: ...


@pytest.mark.parametrize("handler", [documented, undocumented])
def test_a_handler_that_does_not_fit_its_path_is_refused_at_start(handler: object) -> None:
    with pytest.raises(TypeError):
        route("GET", "/v1/x", handler)  # type: ignore[arg-type]
