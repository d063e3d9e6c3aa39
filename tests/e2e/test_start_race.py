"""S9: the real hook, a real libvirtd, a real agent, and a start that comes at the same time as a snapshot."""

import asyncio
from collections import Counter
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from agent.client import AgentClient, AgentProblem
from agent.wire.transaction import SnapshotRequest
from tests.e2e.conftest import Stack
from tests.lab.guest import Guest

pytestmark = pytest.mark.real
Vm = Callable[..., Guest]
#: Whoever won gives the other this much more of a head start, so that the race stays as close as it can be.
STEP_S = 0.005


class Race:
    """One guest that is started and snapshotted at once, again and again."""

    def __init__(self, stack: Stack, vm: UUID, client: AgentClient) -> None:
        self.stack, self.vm, self.client = stack, vm, client
        self.head_start_s = 0.0  # of the start; less than nothing: of the snapshot

    async def run(self, rounds: int) -> Counter[str]:
        """Race so often; return how often the start won, the snapshot, neither, and both."""
        wins: Counter[str] = Counter(start=0, snapshot=0, neither=0, both=0)
        for _ in range(rounds):
            won = await self._round()
            wins[won] += 1
            self.head_start_s += {"start": -STEP_S, "snapshot": STEP_S}.get(won, 0.0)
        return wins

    async def _round(self) -> str:
        started, prepared = await asyncio.gather(
            self._start(max(0.0, -self.head_start_s)), self._snapshot(max(0.0, self.head_start_s))
        )
        shut_off = await self._virsh("domstate") == "shut off"
        assert shut_off != started
        if prepared:
            await self.client.abort(prepared)
        if started:
            await self._virsh("destroy")
        return {(0, 0): "neither", (1, 0): "start", (0, 1): "snapshot", (1, 1): "both"}[started, prepared is not None]

    async def _start(self, after_s: float) -> bool:
        await asyncio.sleep(after_s)
        done = await asyncio.to_thread(self.stack.host.virsh, "start", str(self.vm), check=False)
        return bool(done.returncode == 0)

    async def _snapshot(self, after_s: float) -> UUID | None:
        await asyncio.sleep(after_s)
        id_ = uuid4()
        try:
            await self.client.put_transaction(id_, SnapshotRequest(vm=self.vm, snapshot=uuid4()))
        except AgentProblem:
            return None
        return id_

    async def _virsh(self, command: str) -> str:
        done = await asyncio.to_thread(self.stack.host.virsh, command, str(self.vm))
        return str(done.stdout).strip()


@pytest.mark.case("S9")
@pytest.mark.parametrize("rounds", [24, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(3_600)])])
async def test_start_and_snapshot_raced_never_both_win(
    stack: Stack, vm: Vm, agent_client: AgentClient, rounds: int, record_property: Callable[[str, object], None]
) -> None:
    """Whoever loses goes a little earlier the next time; both outcomes are seen often, and never both together."""
    guest = vm(disks=1, uefi=False, tpm=False)
    wins = await Race(stack, guest.uuid, agent_client).run(rounds)
    record_property("figure", f"S9: {rounds} races of a start and a snapshot, won by {dict(wins)}")
    assert wins["both"] == 0
    assert wins["start"] > rounds / 10
    assert wins["snapshot"] > rounds / 10
