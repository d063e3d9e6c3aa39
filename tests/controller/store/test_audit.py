from uuid import uuid4

import pytest

from controller.db import Database
from controller.store import audit


@pytest.mark.case("X10")
async def test_a_call_is_in_the_log_before_it_ended_and_says_how_it_ended_after(db: Database) -> None:
    seq = await db.run(
        audit.begin, actor="ansible", role="operator", remote="192.0.2.9", method="POST", path="/v1/vms/a/sync"
    )
    (entry,) = (await db.run(audit.page, 9)).items
    assert (entry.seq, entry.actor, entry.status, entry.operation) == (seq, "ansible", 0, None)
    operation = uuid4()
    await db.run(audit.finish, seq, 202, operation)
    (entry,) = (await db.run(audit.page, 9)).items
    assert (entry.status, entry.operation) == (202, operation)


async def test_pages_are_newest_first_and_filtered(db: Database) -> None:
    for number in range(5):
        actor = "a" if number % 2 else "b"
        await db.run(audit.begin, actor=actor, role="admin", remote="unix", method="POST", path=f"/{number}")
    first = await db.run(audit.page, 3)
    rest = await db.run(audit.page, 3, first.next)
    assert [entry.path for entry in first.items + rest.items] == ["/4", "/3", "/2", "/1", "/0"]
    assert [entry.path for entry in (await db.run(audit.page, 9, actor="a", method="POST")).items] == ["/3", "/1"]
