"""Retention policies over HTTP."""

from typing import Any

import pytest

from controller.db import Database
from controller.store import events, operations, retention
from tests.controller.api.conftest import Api
from tests.controller.factories import add_snapshot, add_vm, at, frozen

ONE = "/v1/retention-policies/nightly"


async def put(api: Api, body: Any, path: str = ONE, **headers: str) -> Any:
    answer = await api.call("PUT", path, "operator", json=body, headers=headers)
    assert answer.status == 200, await answer.text()
    return await answer.json()


async def test_a_policy_is_set_as_a_whole_listed_shown_and_removed(db: Database, api: Api) -> None:
    vm = await db.run(add_vm, name="win11")
    made = await put(api, {"vm": "win11", "keep_daily": 7})
    assert (made["vm"], made["vm_name"], made["keep_daily"], made["enabled"]) == (str(vm), "win11", 7, True)
    before = await db.run(events.newest)
    assert await put(api, {"vm": str(vm), "keep_daily": 7}) == made
    assert await db.run(events.newest) == before
    other = await put(api, {"labels": {"by": "cron"}, "keep_last": 1}, "/v1/retention-policies/cron")
    changed = await put(api, {"vm": "win11", "keep_last": 2})
    assert (changed["keep_daily"], changed["keep_last"], changed["created_at"]) == (0, 2, made["created_at"])
    assert (await api.json("/v1/retention-policies"))["items"] == [other, changed]
    assert (await api.json("/v1/retention-policies?limit=1"))["items"] == [other]
    gone = await api.call("DELETE", ONE, "operator")
    assert (gone.status, await gone.json()) == (200, changed)
    assert await api.code("GET", ONE) == (404, "retention-policy-not-found")
    types = [one.type for one in await db.run(events.read, before, 100)]
    assert types == ["retention.set", "retention.set", "retention.removed"]


@pytest.mark.parametrize(
    "body",
    [
        {"keep_last": 1},
        {"vm": "win11"},
        {"vm": "nobody", "keep_last": 1},
        {"vm": "win11", "keep_last": -1},
        {"vm": "win11", "keep_yearly": 1},
        {"labels": {"": "x"}, "keep_last": 1},
    ],
)
async def test_a_policy_that_covers_everything_keeps_nothing_or_is_misspelt_is_refused(
    db: Database, api: Api, body: Any
) -> None:
    await db.run(add_vm, name="win11")
    status, _ = await api.code("PUT", ONE, json=body)
    assert status in {400, 404, 422}
    assert await api.code("PUT", "/v1/retention-policies/a b", json={"vm": "win11", "keep_last": 1}) == (
        422,
        "name-invalid",
    )
    assert (await db.run(retention.page, 10)).items == []


async def test_a_policy_is_replaced_and_removed_only_in_the_version_that_was_seen(db: Database, api: Api) -> None:
    await db.run(add_vm, name="win11")
    body = {"vm": "win11", "keep_last": 1}
    stale = {"If-Match": f'"{"0" * 64}"'}
    assert await api.code("PUT", ONE, json=body, headers=stale) == (412, "precondition-failed")
    await put(api, body)
    seen = (await api.get(ONE)).headers["ETag"]
    await put(api, {**body, "keep_last": 2}, **{"If-Match": seen})
    assert await api.code("PUT", ONE, json=body, headers={"If-Match": seen}) == (412, "precondition-failed")
    assert await api.code("DELETE", ONE, headers={"If-Match": seen}) == (412, "precondition-failed")
    assert (await api.json(ONE))["keep_last"] == 2


async def test_a_preview_says_what_a_policy_would_do_before_it_is_in_force(db: Database, api: Api) -> None:
    vm = await db.run(add_vm, name="win11")
    for number, name in enumerate(("a", "b", "c")):
        disks = [frozen(path=f"/{name}.qcow2")]
        await db.run(add_snapshot, vm, name=name, created_at=at(60 * number), volumes=disks)
    await put(api, {"vm": "win11", "keep_last": 1, "enabled": False})
    assert await api.code("POST", f"{ONE}/apply") == (409, "retention-disabled")
    told = (await api.json(f"{ONE}/preview"))["items"]
    assert [(one["name"], one["keep"], one["reason"]) for one in told] == [
        ("c", True, "policy nightly: last 1 of 1"),
        ("b", False, "kept by no rule of policy nightly"),
        ("a", False, "kept by no rule of policy nightly"),
    ]
    first = await api.json(f"{ONE}/preview?limit=2")
    rest = await api.json(f"{ONE}/preview?limit=2&after={first['next']}")
    assert [*first["items"], *rest["items"]] == told
    assert not await db.run(operations.open_count, vm=vm)


async def test_applying_a_policy_is_an_operation(db: Database, api: Api) -> None:
    await db.run(add_vm, name="win11")
    await put(api, {"vm": "win11", "keep_last": 1})
    key = {"Idempotency-Key": "one"}
    answers = [await api.call("POST", f"{ONE}/apply", "operator", headers=key) for _ in range(2)]
    assert [answer.status for answer in answers] == [202, 202]
    first, second = [await answer.json() for answer in answers]
    assert (first["kind"], first["uuid"]) == ("retention-apply", second["uuid"])
    assert await api.code("POST", "/v1/retention-policies/nobody/apply") == (404, "retention-policy-not-found")
