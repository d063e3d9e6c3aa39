"""F1 on a real host: the agent is killed at every point of a snapshot and of a revert, and started again.

The points come from a run that is not killed, so a new step is killed at too. After each death the guest must be
wholly in the old state or wholly in the new, nothing may lie about, and libvirt must be willing to start it.
"""

import contextlib
from collections.abc import Iterator
from uuid import uuid4

import pytest

from agent.client import AgentClient, AgentUnreachable
from agent.wire.host_file import HostFileType
from agent.wire.transaction import RevertRequest, SnapshotRequest, Transaction
from tests.agent.transactions.story import revert_request
from tests.e2e.conftest import change_at_rest, run_once, seen, targets
from tests.lab.guest import Guest
from tests.lab.host import LabHost
from tests.lab.mortal_agent import MortalAgent
from tests.visits import Struck

pytestmark = [pytest.mark.real, pytest.mark.timeout(580)]
#: `make test` dies at every eighth point here, and at every one with libvirt played; `make test-slow` at every one.
SHARES = pytest.mark.parametrize("share", [12, pytest.param(1, marks=pytest.mark.slow)])


class Story:
    """One guest, an agent that can die, and what the controller would keep."""

    def __init__(self, host: LabHost, agent: MortalAgent, guest: Guest) -> None:
        self.host, self.agent, self.guest = host, agent, guest
        self.taken: Transaction | None = None
        self.host_files: dict[HostFileType, bytes] = {}

    async def run(self, kind: str) -> None:
        """Run one transaction from beginning to end, or until the agent dies."""
        async with AgentClient(self.agent.url, self.agent.token) as client:
            id_ = uuid4()
            if kind == "snapshot":
                self.taken = await client.put_transaction(id_, self.snapshot_request())
                self.host_files = {f.type: await client.captured(id_, f.type) for f in self.taken.host_files}
            else:
                await client.put_transaction(id_, self.revert_request())
                for type_, data in self.host_files.items():
                    await client.upload(id_, type_, data)
            assert (await client.commit(id_)).state == "committed"

    def snapshot_request(self) -> SnapshotRequest:
        return SnapshotRequest(vm=self.guest.uuid, snapshot=uuid4())

    def revert_request(self) -> RevertRequest:
        assert self.taken is not None
        return revert_request(self.taken, self.host_files, vm=self.guest.uuid)

    async def die(self, kind: str, point: str) -> None:
        """Run a transaction in an agent that dies at ``point``, and start one that lives."""
        self.agent.stop()
        self.agent.dies_at(point)
        self.agent.start()
        with contextlib.suppress(AgentUnreachable):
            await self.run(kind)
        self.agent.wait_gone()
        self.agent.dies_at(None)
        self.agent.start()

    def files(self) -> set[str]:
        """List the files of the guest's disks and host files, and what a transaction stages."""
        inside = [self.guest.disk_path("vda").parent, self.guest.nvram.parent, self.guest.tpm_dir.parent.parent]
        roots = [*map(self.host.path, inside), self.agent.state_dir / "transactions", self.agent.state_dir / "guards"]
        found = {str(path) for root in roots for path in root.rglob("*") if path.is_file()}
        return {path for path in found if not path.endswith(".lock")}


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with LabHost("mortal") as host:
        agent = MortalAgent(host)
        agent.dies_at(None)
        with agent:
            yield Story(host, agent, run_once(host.define_guest("mortal")))


async def points_of(story: Story, kind: str) -> list[str]:
    story.agent.dies_at(None)
    story.agent.restart()
    await story.run(kind)
    points = story.agent.points()
    assert len(points) == len(set(points)) > 12
    return points


@SHARES
@pytest.mark.case("F1")
async def test_agent_killed_at_every_point_of_a_snapshot(story: Story, share: int, struck: Struck) -> None:
    for point in (await points_of(story, "snapshot"))[::share]:
        before, files = seen(story.guest), story.files()
        await story.die("snapshot", point)
        assert seen(story.guest) == before, point
        added = story.files() - files
        assert len(added) in (0, len(targets(story.guest))), (point, added)
        assert not files - story.files(), point
        struck(1)
    story.guest.start()
    story.guest.destroy()


@SHARES
@pytest.mark.case("F1")
async def test_agent_killed_at_every_point_of_a_revert(story: Story, share: int, struck: Struck) -> None:
    await story.run("snapshot")
    frozen = seen(story.guest)
    for number, point in enumerate((await points_of(story, "revert"))[::share]):
        change_at_rest(story.guest, f"{number:06}".encode())
        changed, files = seen(story.guest), story.files()
        await story.die("revert", point)
        added = story.files() - files
        assert (seen(story.guest), len(added)) in ((changed, 0), (frozen, len(targets(story.guest)))), (point, added)
        assert not files - story.files(), point
        struck(1)
    story.guest.start()
    story.guest.destroy()
