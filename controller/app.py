"""The controller, wired once."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version

from aiohttp import web
from prometheus_client import CollectorRegistry

from agent.web.application import build
from agent.web.background import Background, keep_going
from agent.web.checkpoint import Checkpoint, no_checkpoint
from agent.web.log import kv
from agent.web.routes import Route
from agent.web.serving import listening, notify, until_told_to_stop
from controller.api.access import AccessRoutes
from controller.api.actions import ActionRoutes
from controller.api.archives import ArchiveRoutes
from controller.api.audit import auditing
from controller.api.backup_files import BackupFileRoutes
from controller.api.enrolment import EnrolmentRoutes
from controller.api.events import EventRoutes, StreamLimits
from controller.api.health import HealthRoutes
from controller.api.hosts import HostRoutes
from controller.api.operations import OperationRoutes
from controller.api.retention import RetentionRoutes
from controller.api.snapshots import SnapshotRoutes
from controller.api.upkeep import DoctorRoutes, VerifyRoutes
from controller.api.vms import VmRoutes
from controller.auth import authenticator
from controller.config import Config
from controller.db import Database
from controller.dry_run import Works, with_dry_run
from controller.errors import DatabaseFailed
from controller.events import Follower, Pace
from controller.hosts import Hosts
from controller.housekeeping import Metrics, keep_house, keep_retention
from controller.operations.engine import Engine, Limits
from controller.operations.job import Patience
from controller.operations.kinds import KINDS

log = logging.getLogger("coldframe.controller")

VERSION = version("coldframe")


def make_app(
    settings: Config, db: Database, registry: Hosts, engine: Engine, metrics: CollectorRegistry
) -> web.Application:
    """Return the application. Raises SettingsError where the token file cannot be used."""
    let_in = authenticator(db, settings.token_file)
    routes = [
        *with_dry_run(Works(db, registry, engine), routes_of),
        *EventRoutes(db, let_in, StreamLimits(backlog=settings.listener_backlog)).routes(),
    ]
    routes = [_with_database(one) for one in routes]
    app = build(routes, title="Coldframe controller", version=VERSION, authenticator=let_in, registry=metrics)
    app.middlewares.append(auditing(db))
    return app


def routes_of(works: Works) -> list[Route]:
    """Return the routes on what they work on: the real things, or those of a dry run."""
    db, engine = works.db, works.engine
    return [
        *HealthRoutes(db, VERSION).routes(),
        *HostRoutes(db).routes(),
        *EnrolmentRoutes(works.hosts).routes(),
        *VmRoutes(db, works.hosts).routes(),
        *SnapshotRoutes(db).routes(),
        *ActionRoutes(engine).routes(),
        *VerifyRoutes(engine).routes(),
        *DoctorRoutes(engine).routes(),
        *RetentionRoutes(engine).routes(),
        *ArchiveRoutes(engine).routes(),
        *BackupFileRoutes(db).routes(),
        *OperationRoutes(db, engine).routes(),
        *AccessRoutes(db).routes(),
    ]


@asynccontextmanager
async def running(settings: Config, checkpoint: Checkpoint = no_checkpoint) -> AsyncIterator[web.Application]:
    """Open the database, take up operations, follow the hosts; yields the application. Ends in the other order."""
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(Database(settings.database, checkpoint))
        registry = await stack.enter_async_context(Hosts(db, checkpoint=checkpoint))
        metrics = CollectorRegistry()
        engine = Engine(db, registry, KINDS, _limits(settings))
        app = make_app(settings, db, registry, engine, metrics)
        await stack.enter_async_context(engine)
        stack.push_async_callback(registry.stop_following)
        pace = Pace(poll_s=settings.poll_s, event_wait_s=settings.event_wait_s, retry_max_s=settings.retry_max_s)
        registry.start_following(
            lambda name: asyncio.create_task(
                keep_going(f"host {name}", Follower(name, db, registry, engine.nudge, pace).run, until_done=True),
                name=f"host {name}",
            )
        )
        background = await stack.enter_async_context(Background())
        background.keep("hosts", registry.keep_aligned)
        background.keep("housekeeping", partial(keep_house, db, Metrics(metrics), settings.events_kept))
        background.keep("retention", partial(keep_retention, db, engine.nudge, settings.retention_interval_s))
        yield app


async def serve(settings: Config, checkpoint: Checkpoint = no_checkpoint) -> None:
    """Serve until SIGTERM or SIGINT. Raises what keeps it from starting."""
    async with (
        running(settings, checkpoint) as app,
        listening(app, listen=settings.listen, tls=settings.tls, socket_path=None) as urls,
    ):
        log.info(kv("serving", version=VERSION, urls=", ".join(urls)))
        notify("READY=1")
        told = await until_told_to_stop()
        log.info(kv("stopping", signal=told))
        notify("STOPPING=1")


def _with_database(route: Route) -> Route:
    """Return a route as its document must have it: whatever asks the database may find that it fails."""
    return route if route.role is None else replace(route, errors=(*route.errors, DatabaseFailed))


def _limits(settings: Config) -> Limits:
    patience = Patience(lease_s=settings.lease_s, host_file_limit_bytes=settings.host_file_limit_bytes)
    return Limits(per_host=settings.per_host_limit, patience=patience)
