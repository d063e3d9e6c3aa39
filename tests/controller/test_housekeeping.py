import asyncio

from prometheus_client import CollectorRegistry

from agent.wire.retention import SetRetention
from controller.db import Database
from controller.housekeeping import Metrics, keep_house, keep_retention
from controller.store import events, operations, retention, vms
from tests.controller.factories import HOST, T0, add_snapshot, add_vm, at, frozen, host_vm


async def test_metrics_follow_the_records_and_a_state_that_nothing_is_in_any_more_shows_zero(db: Database) -> None:
    registry = CollectorRegistry()
    vm = await db.run(add_vm, state="running")
    house = asyncio.create_task(keep_house(db, Metrics(registry), events_kept=1, period_s=0))

    async def until(state: str, value: float) -> None:
        async with asyncio.timeout(20):
            while registry.get_sample_value("coldframe_vms", {"state": state}) != value:
                await asyncio.sleep(0)

    await until("running", 1)
    await db.run(vms.record_one, HOST, host_vm(uuid=vm, state="shut-off"), T0)
    await until("shut-off", 1)
    await until("running", 0)
    assert await db.run(events.oldest) == await db.run(events.newest)
    house.cancel()
    await asyncio.gather(house, return_exceptions=True)


async def test_retention_is_applied_again_and_again(db: Database) -> None:
    vm = await db.run(add_vm, name="win11")
    for number in range(2):
        await db.run(add_snapshot, vm, created_at=at(number), volumes=[frozen(path=f"/{number}.qcow2")])
    nudges = asyncio.Semaphore(0)
    keeper = asyncio.create_task(keep_retention(db, nudges.release, 0.001))
    async with asyncio.timeout(20):
        await nudges.acquire()
        await db.run(retention.put, "p", SetRetention(vm="win11", keep_last=1))
        for _ in range(2):
            await nudges.acquire()
    assert await db.run(operations.open_count, vm=vm) == 1
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
