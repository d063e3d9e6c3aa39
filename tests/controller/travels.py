"""Work that carries something in or out: archives with their caller's stream, and moves to another host."""

from collections.abc import AsyncIterator
from uuid import uuid4

from agent.wire.fleet import AddHost
from agent.wire.operation import Operation
from controller.archive.unpack import Unpacking
from controller.operations import place, snapshot_export, snapshot_import
from tests.controller.archive import forge
from tests.controller.fake_agent import TOKEN
from tests.controller.world import HOST, OTHER, World


class Written:
    """A caller that takes an archive."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.whole = False

    async def write(self, piece: bytes) -> None:
        self.pieces.append(piece)

    async def finish(self) -> None:
        self.whole = True


async def hand_out_whole(one: World) -> Operation:
    """Export a snapshot; what the operation says has arrived is a whole archive."""
    queued = await one.submit("snapshot-export", snapshot_export.Wanted(snapshot=await one.named("first")))
    sink = Written()
    one.engine.streams.sinks.offer(queued.uuid, sink)
    ended = await one.ended(queued.uuid)
    assert sink.whole or ended.state != "succeeded"
    if sink.whole:
        unpacking = await Unpacking.open(_pieces(sink.pieces), forge.LIMIT_BYTES)
        await unpacking.verify()
    return ended


async def take_in(one: World) -> Operation:
    """Import an archive as a VM of its own."""
    archive = await forge.packed({"disks/vda.qcow2": b"vda" * 5000})
    unpacking = await Unpacking.open(_pieces([archive]), forge.LIMIT_BYTES)
    vm = uuid4()
    wanted = snapshot_import.Wanted(
        manifest=unpacking.manifest,
        domain_xml=unpacking.domain_xml(),
        vm=vm,
        vm_name=f"copy-{vm}",
        name="as it was",
        renew=True,
    )
    queued = await one.engine.submit("snapshot-import", wanted, lambda: (vm, HOST))
    one.engine.streams.archives.offer(queued.uuid, unpacking)
    return await one.ended(queued.uuid)


async def _pieces(data: list[bytes]) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def have_somewhere_to_go(one: World) -> None:
    """Enrol the other host."""
    await one.hosts.add(AddHost(name=OTHER, url=one.other_url, agent_token=TOKEN))
    await one.sync()


async def move(one: World) -> Operation:
    """Move the VM to the other host; whoever asks again has looked at the hosts since."""
    await one.look()
    asked = await one.engine.submit("vm-place", place.Wanted(host=OTHER), lambda: (one.vm.uuid, OTHER))
    return await one.ended(asked.uuid)
