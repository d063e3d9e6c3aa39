"""The whole product in one process: a controller over HTTP, an agent behind its socket, real images, the real hook.

libvirt and the network are played. A VM that is "running" is written to by ``qemu-io``, and libvirt's calls of the
hook are made as libvirt makes them.
"""

import asyncio
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID, uuid4

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from lxml import etree
from prometheus_client import CollectorRegistry

from agent import app as agent_app
from agent import config as agent_config
from agent.host.hypervisor import Hypervisor
from agent.host.network import Network
from agent.web.auth import Secret
from agent.wire.fleet import AddHost
from controller.app import make_app
from controller.config import Config
from controller.db import Database
from controller.events import Follower, Pace
from controller.hosts import Hosts
from controller.models import database
from controller.operations.engine import Engine, Limits
from controller.operations.job import Patience
from controller.operations.kinds import KINDS
from controller.store import hosts, operations, tokens
from tests.agent.fakes import FakeDomain, FakeHypervisor, FakeNetwork, domain_xml
from tests.agent.transactions.rig import nvram, permall
from tests.hooks.hook import ENVIRONMENT, HOOK

HOST = "kvm1"
SECRET = "the-agents-secret"
PATIENCE_S = 30
_SLEEP_S = 0.005


class House:
    """One host and its controller, below one directory; with ``alone`` the host without a controller."""

    def __init__(self, root: Path, *, alone: bool = False) -> None:
        self.root, self.alone = root, alone
        self.images, self.nvram_dir, self.swtpm_dir = root / "images", root / "nvram", root / "swtpm"
        self.state_dir = root / "state"
        self.hypervisor = FakeHypervisor()
        self._parts = AsyncExitStack()
        self.config = agent_config.Config(
            socket=root / "agent.sock",
            state_dir=self.state_dir,
            allowed_image_dirs=[self.images],
            nvram_dir=self.nvram_dir,
            swtpm_dir=self.swtpm_dir,
            hook_dir=root / "hooks",
            token_file=root / "token",
            reserve_bytes=0,
        )

    async def __aenter__(self) -> Self:
        for directory in (self.images, self.nvram_dir, self.swtpm_dir, self.config.hook_file.parent):
            directory.mkdir(parents=True)
        shutil.copy(HOOK, self.config.hook_file)
        await self._open()
        if not self.alone:
            await self.registry.add(self.enrolment())
        return self

    def enrolment(self) -> AddHost:
        """Say how a controller reaches the agent."""
        return AddHost(name=HOST, url=f"unix://{self.config.socket}", agent_token=SECRET)

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._parts.aclose()

    async def restart(self) -> None:
        """Stop both daemons and start them again on what they left."""
        await self._parts.aclose()
        await self._open()

    async def _open(self) -> None:
        async with AsyncExitStack() as parts:
            await self._open_agent(parts)
            if not self.alone:
                await self._open_controller(parts)
            self._parts = parts.pop_all()

    async def _open_agent(self, parts: AsyncExitStack) -> None:
        self.hypervisor.connected = True
        hypervisor, network = cast(Hypervisor, self.hypervisor), cast(Network, FakeNetwork())
        self.agent = await parts.enter_async_context(agent_app.working(self.config, hypervisor, network))
        runner = web.AppRunner(agent_app.application_of(self.agent, self.config, Secret(SECRET)), shutdown_timeout=0.1)
        await runner.setup()
        parts.push_async_callback(runner.cleanup)
        await web.UnixSite(runner, str(self.config.socket)).start()

    async def _open_controller(self, parts: AsyncExitStack) -> None:
        self.db = await parts.enter_async_context(Database(f"sqlite:///{self.root}/controller.db"))
        await self.db.run(lambda: database.execute_sql("PRAGMA synchronous = off"))  # no power is lost here
        self.registry = await parts.enter_async_context(Hosts(self.db))
        engine = Engine(self.db, self.registry, KINDS, Limits(parked_s=0.05, patience=Patience(poll_s=0.01)))
        app = make_app(Config(), self.db, self.registry, engine, CollectorRegistry())
        await parts.enter_async_context(engine)
        pace = Pace(event_wait_s=1.0)
        parts.push_async_callback(self.registry.stop_following)
        self.registry.start_following(
            lambda name: asyncio.create_task(Follower(name, self.db, self.registry, engine.nudge, pace).run())
        )
        token = await self.db.run(tokens.create, f"oracle-{uuid4()}", "admin")
        headers = {"Authorization": f"Bearer {token.secret}"}
        self.client = await parts.enter_async_context(TestClient(TestServer(app), headers=headers))

    def define(self, name: str, uuid: UUID, disks: dict[str, Path]) -> None:
        """Define a shut-off UEFI and TPM domain on these images, with firmware state of its own."""
        path = self.nvram_dir / f"{name}_VARS.fd"
        self.hypervisor.add(domain_xml(name=name, uuid=uuid, disks=disks, nvram=path, tpm=True))
        self.write_host_files(uuid, 0x41, 0x41)

    def undefine(self, vm: UUID) -> None:
        """Undefine a domain with its NVRAM and TPM, as ``virsh undefine --nvram`` does."""
        self.nvram(vm).unlink(missing_ok=True)
        shutil.rmtree(self.swtpm_dir / str(vm), ignore_errors=True)
        domain = self.hypervisor.by_uuid.pop(vm)
        self.hypervisor.tell("undefined", domain)

    def domain(self, vm: UUID) -> FakeDomain:
        return self.hypervisor.by_uuid[vm]

    def tops(self, vm: UUID) -> dict[str, Path]:
        """Return the file that each disk of a domain's definition names."""
        root = etree.fromstring(self.domain(vm).xml)
        targets, sources = root.xpath("devices/disk/target/@dev"), root.xpath("devices/disk/source/@file")
        return {target: Path(source) for target, source in zip(targets, sources, strict=True)}

    def nvram(self, vm: UUID) -> Path:
        return Path(etree.fromstring(self.domain(vm).xml).findtext("os/nvram") or "")

    def permall(self, vm: UUID) -> Path:
        return self.swtpm_dir / str(vm) / "tpm2" / "tpm2-00.permall"

    def write_host_files(self, vm: UUID, store: int, state: int) -> None:
        """Write NVRAM and TPM state as firmware and swtpm do, each filled with one byte."""
        self.nvram(vm).write_bytes(nvram(bytes([store])))
        self.permall(vm).parent.mkdir(parents=True, exist_ok=True)
        self.permall(vm).write_bytes(permall(bytes([state])))

    async def start(self, vm: UUID) -> None:
        """Start a VM: the hook is asked first, and told afterwards."""
        await self._hook(vm, "prepare", "begin")
        await self._hook(vm, "start", "begin")
        self.domain(vm).state = "running"
        await self._hook(vm, "started", "begin")
        self.hypervisor.tell("started", self.domain(vm))

    async def stop(self, vm: UUID) -> None:
        """Stop a VM, and tell the hook."""
        self.domain(vm).state = "shut-off"
        await self._hook(vm, "stopped", "end")
        await self._hook(vm, "release", "end")
        self.hypervisor.tell("stopped", self.domain(vm))

    async def _hook(self, vm: UUID, operation: str, sub: str) -> None:
        domain = self.domain(vm)
        argv = (str(self.config.hook_file), domain.name, operation, sub, "-")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stderr=pipe, env=ENVIRONMENT, cwd="/")
        _, said = await process.communicate(domain.xml.encode())
        assert process.returncode == 0, said.decode()

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Call the controller's API; return status and document."""
        async with self.client.request(method, path, json=body) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str) -> Any:
        """Read what must be there; of a list its items, which must be all."""
        status, found = await self.call("GET", path)
        assert status == 200, found
        return found

    async def content(self, path: str) -> bytes:
        """Read the bytes of a backup file."""
        async with self.client.get(path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.read()

    async def operate(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Start an operation and wait until it has ended, or waits for its VM to stop."""
        status, found = await self.call(method, f"{path}?wait={PATIENCE_S}", body)
        assert status == 202, found
        return cast(dict[str, Any], found)

    async def ended(self, operation: str) -> dict[str, Any]:
        """Wait for an operation that was parked, and return it ended."""
        found: dict[str, Any] = {}
        async with asyncio.timeout(PATIENCE_S):
            while found.get("ended_at") is None:
                await asyncio.sleep(_SLEEP_S)
                found = await self.get(f"/v1/operations/{operation}")
        return found

    async def settle(self) -> None:
        """Wait until all that happened is worked off: the hook's notes, the host's events, the operations."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self._is_settled():
                await asyncio.sleep(_SLEEP_S)

    async def _is_settled(self) -> bool:
        if any((self.state_dir / "spool").glob("[0-9]*")):
            return False
        _, cursor = await self.db.run(hosts.cursor, HOST)
        newest = max((event.seq for event in self.agent.event_log.read(cursor, 1000).items), default=cursor)
        return cursor == newest and await self.db.run(operations.open_count, host=HOST, parked=False) == 0

    async def known(self, vm: UUID) -> None:
        """Wait until the controller has heard of a VM that was defined."""
        self.hypervisor.tell("defined", self.domain(vm))
        async with asyncio.timeout(PATIENCE_S):
            while (await self.call("GET", f"/v1/vms/{vm}"))[0] != 200:
                await asyncio.sleep(_SLEEP_S)
