"""An agent on a host in a directory, in a process of its own: ``python -m tests.agent.api.alone DIRECTORY``.

It serves on ``agent.sock`` there, says ``ready`` on stdout, and ends with SIGTERM. Libvirt and the network are played.
"""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import cast

import msgspec

from agent import app as agent_app
from agent.config import Config
from agent.host.hypervisor import Hypervisor
from agent.host.network import Network
from agent.web import serving
from agent.web.auth import Secret
from tests.agent.api.conftest import TOKEN, make_host

#: What its first disk holds. The limit of host files is the default.
DATA_MIB = 256


async def serve(root: Path) -> None:
    host = make_host(root)
    config = msgspec.structs.replace(host.config, host_file_limit_bytes=Config().host_file_limit_bytes)
    hypervisor, network = cast(Hypervisor, host.hypervisor), cast(Network, host.network)
    async with agent_app.working(config, hypervisor, network) as agent:
        app = agent_app.application_of(agent, config, Secret(TOKEN))
        async with serving.listening(app, listen="", tls=None, socket_path=config.socket):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            await serving.until_told_to_stop()


def fill(disk: Path) -> None:
    disk.unlink()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, f"{DATA_MIB}M"], check=True)
    command: list[str | Path] = ["qemu-io", "-f", "qcow2", "-c", f"write -q -P 7 0 {DATA_MIB}M", disk]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
