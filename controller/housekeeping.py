"""What has to be done now and then: old events and superfluous snapshots go, metrics are brought up to date."""

import asyncio
import logging
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge

from agent.web.log import kv
from controller.db import Database
from controller.errors import DatabaseFailed
from controller.store import census, events, expiry

log = logging.getLogger("coldframe.housekeeping")

#: Prometheus asks every 15 s or more rarely; counting more often would show nobody anything.
PERIOD_S = 15.0
_SETTLED_S = 60.0


class Metrics:
    """The controller's own metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._by_state = {
            name: Gauge(f"coldframe_{name}", f"{name.capitalize()} by state", ("state",), registry=registry)
            for name in ("hosts", "vms", "snapshots", "operations")
        }
        self._states: dict[str, set[str]] = {name: set() for name in self._by_state}
        self._contents = Gauge("coldframe_contents", "Stored contents of host files", registry=registry)
        self._bytes = Gauge("coldframe_contents_bytes", "What contents take up in the database", registry=registry)

    def show(self, found: census.Census) -> None:
        """Take over what was counted; a state that nothing is in any more shows 0."""
        for name, gauge in self._by_state.items():
            counts: dict[str, int] = getattr(found, name)
            self._states[name] |= counts.keys()
            for state in self._states[name]:
                gauge.labels(state).set(counts.get(state, 0))
        self._contents.set(found.contents)
        self._bytes.set(found.content_bytes)


async def keep_house(db: Database, metrics: Metrics, events_kept: int, period_s: float = PERIOD_S) -> None:
    """Look after the database until cancelled, at most once in ``period_s`` and only after changes."""
    while True:
        version = db.version
        try:
            trimmed = await db.run(events.trim, events_kept)
            metrics.show(await db.run(census.take))
        except DatabaseFailed as err:
            log.warning(kv("housekeeping-failed", detail=str(err)))
        else:
            if trimmed:
                log.info(kv("events-trimmed", count=trimmed))
        await asyncio.sleep(period_s)
        await db.changed(version)


async def keep_retention(db: Database, nudge: Callable[[], None], interval_s: float) -> None:
    """Apply the retention policies every ``interval_s`` until cancelled; ``nudge`` wakes the engine.

    First after a minute: by then the hosts have been looked at, and an operator who has just restored an older copy of
    the database has had the time to stop the controller again.
    """
    await asyncio.sleep(min(_SETTLED_S, interval_s))
    while True:
        try:
            for vm in await db.run(expiry.concerned):
                await db.run(expiry.expire_quietly, vm)
        except DatabaseFailed as err:
            log.warning(kv("retention-failed", detail=str(err)))
        nudge()
        await asyncio.sleep(interval_s)
