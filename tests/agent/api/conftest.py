"""A whole agent over HTTP on a host in a directory: only libvirt and the network are played."""

import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from agent import app as agent_app
from agent.client import AgentClient
from agent.config import Config
from agent.host.hypervisor import Hypervisor
from agent.host.network import Network
from agent.web.auth import Secret
from tests.agent.fakes import FakeDomain, FakeHypervisor, FakeNetwork, domain_xml
from tests.agent.transactions.rig import nvram, permall
from tests.web.conformance import Conformance

TOKEN = "the-agents-secret"
VM = UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11")
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
Client = TestClient[web.Request, web.Application]


@dataclass
class Host:
    """One host: directories, a UEFI and TPM domain with two disks, and its agent's settings."""

    root: Path
    hypervisor: FakeHypervisor
    network: FakeNetwork
    domain: FakeDomain
    config: Config

    @property
    def nvram(self) -> Path:
        return self.root / "nvram" / "win11_VARS.fd"

    @property
    def tpm(self) -> Path:
        return self.root / "swtpm" / str(VM) / "tpm2"


@dataclass
class Serving:
    """The agent as it serves: its parts, a raw client, a typed client, and a client without a credential."""

    agent: agent_app.Agent
    app: web.Application
    url: str
    http: Client
    client: AgentClient
    stranger: Client


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return make_host(tmp_path)


def make_host(tmp_path: Path) -> Host:
    """Make a host in a directory."""
    for name in ("images", "nvram", "hooks/qemu.d", f"swtpm/{VM}/tpm2"):
        (tmp_path / name).mkdir(parents=True)
    disks = {target: tmp_path / "images" / f"{target}.qcow2" for target in ("vda", "vdb")}
    for path in disks.values():
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "4M"], check=True)
    hypervisor = FakeHypervisor()
    domain = hypervisor.add(domain_xml(uuid=VM, disks=disks, nvram=tmp_path / "nvram" / "win11_VARS.fd", tpm=True))
    config = Config(
        socket=tmp_path / "agent.sock",
        state_dir=tmp_path / "state",
        allowed_image_dirs=[tmp_path / "images"],
        nvram_dir=tmp_path / "nvram",
        swtpm_dir=tmp_path / "swtpm",
        hook_dir=tmp_path / "hooks",
        token_file=tmp_path / "token",
        reserve_bytes=0,
        host_file_limit_bytes=1 << 20,
    )
    host = Host(tmp_path, hypervisor, FakeNetwork(), domain, config)
    host.nvram.write_bytes(nvram(b"A"))
    (host.tpm / "tpm2-00.permall").write_bytes(permall(b"A"))
    return host


@pytest.fixture
async def serving(host: Host) -> AsyncIterator[Serving]:
    """Serve the host's agent; every answer of the test is checked against the agent's OpenAPI document."""
    hypervisor, network = cast(Hypervisor, host.hypervisor), cast(Network, host.network)
    async with agent_app.working(host.config, hypervisor, network) as agent:
        app = agent_app.application_of(agent, host.config, Secret(TOKEN))
        conformance = Conformance(app)
        server = TestServer(app)
        await server.start_server()
        url = str(server.make_url("/"))
        http, stranger = TestClient(server, headers=HEADERS), TestClient(server)
        async with AgentClient(url, TOKEN) as client:
            yield Serving(agent, app, url, http, client, stranger)
        await http.close()
        await stranger.close()
        await server.close()
    conformance.verify()
