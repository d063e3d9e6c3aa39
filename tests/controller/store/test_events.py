from uuid import uuid4

from controller.db import Database
from controller.store import census, events
from tests.controller.factories import add_snapshot, add_vm


async def test_events_are_read_in_order_from_where_one_left_off(db: Database) -> None:
    vm = uuid4()
    for number in range(5):
        await db.run(events.append, "test", host="kvm1", vm=vm, data={"number": number})
    first = await db.run(events.read, 0, 3)
    rest = await db.run(events.read, first[-1].seq, 9)
    assert [event.data["number"] for event in first + rest] == [0, 1, 2, 3, 4]
    assert (rest[0].host, rest[0].vm) == ("kvm1", vm)


async def test_trimming_keeps_the_newest_and_never_uses_a_number_again(db: Database) -> None:
    for _ in range(5):
        await db.run(events.append, "test")
    assert await db.run(events.trim, 2) == 3
    assert [event.seq for event in await db.run(events.read, 0, 9)] == [4, 5]
    assert (await db.run(events.oldest), await db.run(events.newest)) == (4, 5)
    await db.run(events.trim, 0)
    assert await db.run(events.append, "test") == 6


async def test_trimming_where_there_is_nothing_to_trim_writes_nothing(db: Database) -> None:
    await db.run(events.append, "test")
    version = db.version
    assert await db.run(events.trim, 2) == 0
    assert db.version == version


async def test_a_census_counts_by_state(db: Database) -> None:
    await db.run(lambda: add_snapshot(add_vm(state="running")))
    found = await db.run(census.take)
    assert (found.vms, found.snapshots, found.hosts) == (
        {"running": 1},
        {"ready": 1},
        {"reachable": 0, "unreachable": 1},
    )
    assert found.contents == 2
    assert found.content_bytes > 0
