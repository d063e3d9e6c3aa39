"""What every application of agent/web does around its handlers."""

import json
import logging
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import aiohttp
import pytest

from tests.agent.web.conftest import SECRET_OF_AN_EXCEPTION, Client

UUID_PATH = "/v1/things/6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"


async def problem(response: aiohttp.ClientResponse) -> dict[str, object]:
    assert response.content_type == "application/problem+json"
    found = json.loads(await response.read())
    assert found["status"] == response.status
    return dict(found)


@pytest.mark.case("X1")
@pytest.mark.parametrize("path", ["/v1/things", UUID_PATH, "/openapi.json", "/docs", "/metrics", "/nowhere", "/"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_without_a_credential_every_path_answers_401(stranger: Client, method: str, path: str) -> None:
    response = await stranger.request(method, path)
    assert response.status == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_health_is_open(stranger: Client) -> None:
    assert (await stranger.get("/healthz")).status == 200


@pytest.mark.case("X1")
@pytest.mark.parametrize(
    ("role", "method", "path", "status"),
    [
        ("reader", "GET", "/v1/things", 200),
        ("reader", "POST", "/v1/things", 403),
        ("operator", "POST", "/v1/things", 201),
        ("operator", "DELETE", UUID_PATH, 403),
        ("admin", "DELETE", UUID_PATH, 204),
        ("reader", "GET", "/v1/things?nonsense=1", 400),
        ("nobody", "GET", "/v1/things", 401),
    ],
)
async def test_each_role_may_do_what_its_row_says(
    connect: Callable[[str | None], Awaitable[Client]], role: str, method: str, path: str, status: int
) -> None:
    client = await connect(role)
    body = {"name": "new"} if method == "POST" else None
    assert (await client.request(method, path, json=body)).status == status


async def test_text_of_an_unexpected_error_reaches_the_log_and_never_the_client(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    response = await client.get("/v1/broken", headers={"X-Request-ID": "abc-1"})
    found = await problem(response)
    assert response.status == 500
    assert found["code"] == "internal-error"
    assert found["facts"] == {"request_id": "abc-1"}
    assert SECRET_OF_AN_EXCEPTION not in str(await response.read()) + str(response.headers)
    records = [record for record in caplog.records if "unexpected-error" in record.getMessage()]
    assert SECRET_OF_AN_EXCEPTION in str(records[0].exc_info)


async def test_an_answer_that_fails_half_way_is_cut_and_never_looks_whole(client: Client) -> None:
    with pytest.raises(aiohttp.ClientError):
        await (await client.get("/v1/half")).read()


@pytest.mark.parametrize("given", ["", "with space", "x" * 65, 'quote"'])
async def test_an_odd_request_id_is_replaced(client: Client, given: str) -> None:
    response = await client.get("/v1/things", headers={"X-Request-ID": given})
    assert response.headers["X-Request-ID"] != given


async def test_unknown_path_and_method_are_problems(client: Client) -> None:
    assert (await problem(await client.get("/v2/things")))["code"] == "route-not-found"
    response = await client.delete("/v1/things")
    assert response.headers["Allow"] == "GET, HEAD, POST"
    assert (await problem(response))["code"] == "method-not-allowed"


async def test_options_says_what_a_path_takes(client: Client) -> None:
    response = await client.options("/v1/things")
    assert (response.status, response.headers["Allow"]) == (204, "GET, HEAD, POST")


async def test_head_answers_as_get_without_a_body(client: Client) -> None:
    response = await client.head("/v1/things")
    whole = await client.get("/v1/things")
    assert await response.read() == b""
    assert response.headers["ETag"] == whole.headers["ETag"]


async def test_get_answers_304_to_the_etag_it_gave(client: Client) -> None:
    tag = (await client.get("/v1/things")).headers["ETag"]
    for header in (tag, f'W/{tag}, "other"', "*"):
        assert (await client.get("/v1/things", headers={"If-None-Match": header})).status == 304
    assert (await client.get("/v1/things", headers={"If-None-Match": '"other"'})).status == 200


@pytest.mark.parametrize(
    ("if_match", "status"),
    [
        (None, 200),
        ('"v2"', 200),
        ('"v1", "v2"', 200),
        ("*", 200),
        ('"v1"', 412),
        ('W/"v2"', 412),
        ("v2", 400),
        ("", 412),
    ],
)
async def test_change_needs_the_version_that_was_seen(client: Client, if_match: str | None, status: int) -> None:
    headers = {} if if_match is None else {"If-Match": if_match}
    assert (await client.put(UUID_PATH, headers=headers)).status == status


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("limt=1", "?limt"),
        ("limit=0", "query.limit"),
        ("limit=x", "query.limit"),
        ("limit=1&limit=2", "?limit"),
        ("big=perhaps", "query.big"),
        ("after=%FF", "query.after"),
        ("after=bm8", "after"),
        ("limit=99999999999999999999999", "query.limit"),
    ],
)
async def test_a_wrong_query_parameter_is_named(client: Client, query: str, where: str) -> None:
    found = await problem(await client.get(f"/v1/things?{query}"))
    assert (found["code"], found["facts"]["where"]) == ("invalid-request", where)  # type: ignore[index]


async def test_pages_follow_their_cursor_to_the_end(client: Client) -> None:
    names, query = [], "limit=2"
    while True:
        page = await (await client.get(f"/v1/things?{query}")).json()
        names += [one["name"] for one in page["items"]]
        if page["next"] is None:
            break
        query = f"limit=2&after={page['next']}"
    assert names == ["t0", "t1", "t2", "t3", "t4"]


async def test_a_list_parameter_may_be_repeated(client: Client) -> None:
    page = await (await client.get("/v1/things?name=t1&name=t3")).json()
    assert [one["name"] for one in page["items"]] == ["t1", "t3"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"name": 1}', "body.name"),
        (b'{"name": ""}', "body.name"),
        (b'{"name": "a", "nmae": 1}', "body"),
        (b'{"name": "a"', "body"),
        (b"", "body"),
        (b"\xff", "body"),
        (b'{"name": "\xff"}', "body"),
        (b"[" * 100_000, "body"),
        (b'{"name": "a", "size": 1e400}', "body.size"),
    ],
)
async def test_a_wrong_body_names_its_field(client: Client, body: bytes, reason: str) -> None:
    response = await client.post("/v1/things", data=body, headers={"Content-Type": "application/json"})
    found = await problem(response)
    assert (found["status"], found["code"]) == (400, "invalid-request")
    assert found["facts"]["where"] == reason  # type: ignore[index]


async def test_a_body_that_is_not_json_is_refused(client: Client) -> None:
    assert (await problem(await client.post("/v1/things", data=b"x")))["code"] == "unsupported-media-type"


async def test_a_body_is_counted_whether_its_length_is_announced_or_not(client: Client) -> None:
    async def chunks() -> object:
        for _ in range(3):
            yield b"four"

    assert (await (await client.put("/v1/bytes", data=b"x" * 10)).json()) == {"size": 10}
    for body in (b"x" * 11, chunks()):
        assert (await problem(await client.put("/v1/bytes", data=body)))["code"] == "body-too-large"


async def test_a_declared_error_and_its_subclass_fit_the_document(client: Client) -> None:
    assert (await problem(await client.get(f"/v1/things/{uuid4()}")))["code"] == "no-thing"
    assert (await problem(await client.get(f"/v1/things/{UUID(int=1)}")))["code"] == "no-golden-thing"
    assert (await problem(await client.get("/v1/things/none")))["facts"] == {"where": "uuid", "reason": "Invalid UUID"}


async def test_an_idempotency_key_reaches_the_handler(client: Client) -> None:
    response = await client.post("/v1/things", json={"name": "a"}, headers={"Idempotency-Key": "k1"})
    assert response.headers["X-Key"] == "k1"
    response = await client.post("/v1/things", json={"name": "a"}, headers={"Idempotency-Key": "k" * 129})
    assert response.status == 400


async def test_an_unknown_expectation_is_ignored_and_a_known_one_answered(client: Client) -> None:
    for expect in ("100-continue", "a-miracle"):
        response = await client.post("/v1/things", json={"name": "a"}, headers={"Expect": expect})
        assert response.status == 201


async def test_the_docs_page_loads_and_runs_nothing(client: Client) -> None:
    response = await client.get("/docs")
    text = await response.text()
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert not any(word in text for word in ("<script", "src=", "http://", "https://", "<link", "@import"))
    assert all(word in text for word in ("/v1/things/{uuid}", 'id="no-golden-thing"', 'id="type-Thing"'))


async def test_metrics_count_by_route_and_not_by_path(client: Client) -> None:
    for number in range(3):
        await client.get(f"/v1/things/{UUID(int=number)}")
        await client.get(f"/scan/{number}")
    text = await (await client.get("/metrics")).text()
    assert 'coldframe_http_requests_total{method="GET",route="/v1/things/{uuid}",status="404"} 3.0' in text
    assert "scan" not in text


async def test_the_access_log_has_no_query_and_no_token(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await client.get("/v1/things?name=secretive")
    lines = [record.getMessage() for record in caplog.records if record.name == "coldframe.http"]
    assert any("path=/v1/things status=200" in line and "actor=tester" in line for line in lines)
    assert not any("secretive" in line or "Bearer" in line for line in lines)
