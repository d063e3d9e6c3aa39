"""What an agent takes of the machine's memory does not grow with what goes through it."""

import asyncio
import hashlib
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from agent.client import AgentClient
from agent.config import Config
from agent.wire.host_file import HostFileType
from tests.agent.api import alone
from tests.agent.api.conftest import TOKEN, VM
from tests.agent.transactions import story
from tests.agent.transactions.rig import nvram

LARGEST = Config().host_file_limit_bytes
MIB = 1 << 20
#: Above what it has after its start: a few copies of the largest host file, and never an image.
BOUND_MIB = 96


@asynccontextmanager
async def agent(root: Path) -> AsyncIterator[int]:
    """Have one run; yields its process id."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", alone.__name__, root, stdout=pipe)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.terminate()
        await process.wait()


def memory_mib(pid: int, what: str) -> float:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[what].split()[0]) / 1024


def largest_nvram() -> bytes:
    data = bytearray(nvram())
    data[0x20:0x28] = struct.pack("<Q", LARGEST)
    return bytes(data) + b"\xff" * (LARGEST - len(data))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_the_largest_host_files_and_images_go_through_an_agent_in_bounded_memory(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    async with agent(tmp_path) as pid, AgentClient(f"unix://{tmp_path}/agent.sock", TOKEN) as client:
        await asyncio.to_thread(alone.fill, tmp_path / "images" / "vda.qcow2")
        before = memory_mib(pid, "VmRSS")
        data = largest_nvram()
        await client.write_host_file(VM, "nvram", data)
        found = await client.read_host_file(VM, "nvram")
        assert found is not None
        assert found.data == data
        id_ = uuid4()
        taken = await client.put_transaction(id_, story.snapshot_request())
        host_files: dict[HostFileType, bytes] = {
            one.type: await client.captured(id_, one.type) for one in taken.host_files
        }
        taken = await client.commit(id_)
        export, coming = uuid4(), uuid4()
        await client.put_transaction(export, story.export_request(taken, flat=False))
        told = (await client.images(export)).items
        wanted = story.import_request(
            taken.domain_xml, told, host_files, vm=story.CLONE, name="copy of win11", renew=True
        )
        await client.put_transaction(coming, wanted)
        for image in told:
            passing = client.read_image(export, image.target, image.position)
            await client.send_image(coming, image.target, image.position, image.size_bytes, passing)
        for type_, content in host_files.items():
            await client.upload(coming, type_, content)
        assert sum(image.size_bytes for image in told) > alone.DATA_MIB * MIB
        done = await client.commit(coming)
        assert done.state == "committed"
        await client.abort(export)
        grown = memory_mib(pid, "VmHWM") - before
        record_property("figure", f"memory of an agent: {before:.0f} MiB at rest, at most {grown:.0f} MiB more")
        assert grown < BOUND_MIB
    assert hashlib.sha256(data).hexdigest() == hashlib.sha256(host_files["nvram"]).hexdigest()
