import asyncio

from prometheus_client import CollectorRegistry

from controller.db import Database
from controller.housekeeping import Metrics, keep_house
from controller.store import events, vms
from tests.controller.factories import HOST, T0, add_vm, host_vm


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
