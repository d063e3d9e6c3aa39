"""The agent put together, once: who works with whom, and in which order it starts."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from agent import metrics
from agent.api.events import EventRoutes
from agent.api.host import HostRoutes
from agent.api.host_files import HostFileRoutes
from agent.api.images import ImageRoutes
from agent.api.transactions import TransactionRoutes
from agent.api.upkeep import UpkeepRoutes
from agent.api.vms import VmRoutes
from agent.config import Config
from agent.disposal import Disposal
from agent.facts import VERSION, Facts
from agent.host import hook_file, memory
from agent.host.event_log import EventLog
from agent.host.hypervisor import Hypervisor
from agent.host.inventory import Inventory
from agent.host.network import Network
from agent.host.spool import Spool
from agent.host.threads import started_pool
from agent.keeper import Keepers, kept_to_one
from agent.limits import Limits
from agent.state_dir import claimed
from agent.transactions.expected import Expected
from agent.transactions.foresight import Foresight
from agent.transactions.guard import Guards
from agent.transactions.manager import Manager
from agent.transactions.transfers import Transfers
from agent.upkeep import Upkeep
from agent.watchers import HOOK_GRACE_S, Watchers
from agent.web import application, serving
from agent.web.auth import Secret, first_of, one_secret, read_secret_file, root_on_unix_socket
from agent.web.background import Background
from agent.web.checkpoint import Checkpoint, no_checkpoint
from agent.web.errors import Error
from agent.web.log import kv

log = logging.getLogger(__name__)

#: A host ends tens of transactions a day; looking through the journal takes as long as starting with it.
_FORGET_EVERY_S = 86_400.0


@dataclass(frozen=True)
class Agent:
    """Everything that works together in one agent."""

    hypervisor: Hypervisor
    network: Network
    inventory: Inventory
    guards: Guards
    event_log: EventLog
    manager: Manager
    watchers: Watchers
    facts: Facts
    upkeep: Upkeep
    disposal: Disposal
    keepers: Keepers


def limits_of(config: Config) -> Limits:
    """Return what the settings allow a transaction."""
    return Limits(
        state_dir=config.state_dir,
        nvram_dir=config.nvram_dir,
        swtpm_dir=config.swtpm_dir,
        allowed_image_dirs=config.allowed_image_dirs,
        max_chain_depth=config.max_chain_depth,
        host_file_limit_bytes=config.host_file_limit_bytes,
        reserve_bytes=config.reserve_bytes,
        max_lease_s=config.max_lease_s,
        outcome_retention_s=config.outcome_retention_days * 86_400.0,
    )


def assemble(
    config: Config,
    hypervisor: Hypervisor,
    network: Network,
    checkpoint: Checkpoint = no_checkpoint,
    hook_grace_s: float = HOOK_GRACE_S,
) -> Agent:
    """Put an agent together on its state directory, which the caller has claimed. Blocks for a few file reads."""
    guards, expected, event_log = Guards(config.state_dir), Expected(config.state_dir), EventLog(config.state_dir)
    limits = limits_of(config)
    inventory = Inventory(hypervisor, guards, expected, limits)
    manager = Manager(
        hypervisor=hypervisor,
        inventory=inventory,
        guards=guards,
        events=event_log,
        limits=limits,
        checkpoint=checkpoint,
    )
    watchers = Watchers(
        event_log=event_log,
        spool=Spool(config.state_dir),
        hypervisor=hypervisor,
        inventory=inventory,
        network=network,
        hook_grace_s=hook_grace_s,
    )
    keepers = Keepers(config.state_dir)
    facts = Facts(hypervisor, network, config.hook_file, keepers)
    upkeep = Upkeep(inventory, manager, guards, limits)
    disposal = Disposal(inventory, limits)
    return Agent(hypervisor, network, inventory, guards, event_log, manager, watchers, facts, upkeep, disposal, keepers)


def application_of(agent: Agent, config: Config, secret: Secret) -> web.Application:
    """Return the agent's HTTP application. Root on the unix socket needs no token; everybody else does."""
    limit = config.host_file_limit_bytes
    routes = [
        *HostRoutes(agent.facts).routes(),
        *VmRoutes(agent.inventory, agent.manager, agent.guards).routes(),
        *HostFileRoutes(agent.inventory, agent.manager, limit).routes(),
        *TransactionRoutes(agent.manager, limit).routes(),
        *ImageRoutes(Transfers(agent.manager), Foresight(agent.manager)).routes(),
        *EventRoutes(agent.event_log).routes(),
        *UpkeepRoutes(agent.upkeep, agent.disposal).routes(),
    ]
    return application.build(
        kept_to_one(agent.keepers, routes),
        title="Coldframe agent",
        version=VERSION,
        authenticator=first_of(root_on_unix_socket, one_secret(secret, "controller")),
        registry=metrics.registry_of(agent.hypervisor, agent.manager, agent.event_log),
    )


@contextlib.asynccontextmanager
async def working(
    config: Config,
    hypervisor: Hypervisor,
    network: Network,
    checkpoint: Checkpoint = no_checkpoint,
    hook_grace_s: float = HOOK_GRACE_S,
) -> AsyncIterator[Agent]:
    """Recover, work off what the hook left, start to watch; yields an agent that is ready to serve.

    The order matters: until recovery is done, no VM in the middle of a commit may be served or be thought free.
    """
    memory.return_large_blocks()
    asyncio.get_running_loop().set_default_executor(started_pool())
    with claimed(config.state_dir):
        await asyncio.to_thread(_tell_hook, config)
        agent = await asyncio.to_thread(assemble, config, hypervisor, network, checkpoint, hook_grace_s)
        try:
            async with hypervisor, Background() as background:
                await agent.manager.recover()
                await _drain(agent)
                for work in (
                    agent.manager.watch,
                    agent.watchers.watch_spool,
                    agent.watchers.watch_libvirt,
                    agent.watchers.watch_domains,
                    agent.watchers.watch_unconfirmed,
                    agent.watchers.watch_network,
                ):
                    background.keep(work.__name__.replace("_", "-"), work)
                background.keep("outcomes", partial(_forget_outcomes, agent.manager))
                yield agent
        finally:
            agent.event_log.close()


async def _forget_outcomes(manager: Manager) -> None:
    """Forget old outcomes now and then, until cancelled: an agent runs for months, and each takes memory and disk."""
    while True:
        await asyncio.sleep(_FORGET_EVERY_S)
        await manager.forget()


async def _drain(agent: Agent) -> None:
    """Work off what the hook left. What the disk does not take waits, and is no reason not to serve."""
    try:
        await agent.watchers.drain()
    except Error as err:
        log.warning(kv("spool-not-drained", reason=err))


def _tell_hook(config: Config) -> None:
    """Tell the hook where the state directory is. An agent that cannot still serves; health shows the hook's state."""
    try:
        if hook_file.write_conf(config.hook_file, config.state_dir):
            log.info(kv("hook-told", file=config.hook_file, state_dir=config.state_dir))
    except Error as err:
        log.warning(kv("hook-not-told", file=config.hook_file, reason=err))
    state = hook_file.state(config.hook_file)
    log.log(logging.INFO if state == "ok" else logging.WARNING, kv("hook", file=config.hook_file, state=state))


async def serve(config: Config, checkpoint: Checkpoint = no_checkpoint) -> None:
    """Serve until SIGTERM or SIGINT. Raises SettingsError, ListenRefused, StateDirInUse before anything is changed."""
    secret = read_secret_file(config.token_file)
    tls = config.tls
    if tls is not None:
        serving.tls_context(tls)
    hypervisor = Hypervisor(config.libvirt_uri, config.libvirt_threads, config.libvirt_deadline_s)
    async with working(config, hypervisor, Network(), checkpoint) as agent:
        app = application_of(agent, config, secret)
        async with serving.listening(app, listen=config.listen, tls=tls, socket_path=config.socket) as urls:
            for url in urls:
                log.info(kv("listening", url=url, version=VERSION))
            serving.notify("READY=1")
            log.info(kv("stopping", signal=await serving.until_told_to_stop()))
            serving.notify("STOPPING=1")
    log.info(kv("stopped"))
