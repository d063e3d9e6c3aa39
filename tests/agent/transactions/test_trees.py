"""Random trees of snapshots in which random nodes are deleted: every other node, and the domain, read the same bytes.

What the controller does is played here in its barest form: it knows each file's children, keeps a file with several
as a hidden base, and merges a base as soon as one child is left.
"""

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.host import dependents
from agent.transactions.manager import Manager
from agent.wire.transaction import DeleteRequest, DoomedVolume, FrozenVolume, RevertRequest, Transaction
from tests.agent.transactions import story
from tests.agent.transactions.rig import DISK_BYTES, VM, Rig, raw_sha256

KIB = 1024


@dataclass
class Tree:
    """The records: each node's frozen files by target, and what a guest read from them when they were frozen."""

    rig: Rig
    manager: Manager
    nodes: list[dict[str, str]] = field(default_factory=list)
    seen: list[dict[str, str]] = field(default_factory=list)
    hidden: list[tuple[str, str]] = field(default_factory=list)

    def read(self, files: dict[str, str]) -> dict[str, str]:
        return {target: raw_sha256(Path(path)) for target, path in files.items()}

    def tops(self) -> dict[str, str]:
        return {target: str(self.rig.top(target)) for target in self.rig.targets}

    def children(self, path: str) -> list[str]:
        return [str(child) for child in dependents.standing_on(Path(path))]

    async def snapshot(self) -> None:
        files = self.tops()
        self.seen.append(self.read(files))
        await story.snapshot(self.manager, host_files="none")
        self.nodes.append(files)

    async def revert(self, number: int) -> None:
        """Go back to a node and drop the present state."""
        files = self.nodes[number]
        volumes = [FrozenVolume(target=target, path=path) for target, path in files.items()]
        request = RevertRequest(vm=VM, snapshot=uuid4(), volumes=volumes)
        await story.revert(self.manager, request, {})
        assert self.read(self.tops()) == self.seen[number]
        await self.merge_bases()

    async def delete(self, number: int) -> None:
        files = self.nodes.pop(number)
        self.seen.pop(number)
        merged = [(target, path) for target, path in files.items() if len(self.children(path)) < 2]
        self.hidden += [pair for pair in files.items() if pair not in merged]
        if merged:
            await self.merge(merged)
        await self.merge_bases()

    async def merge_bases(self) -> None:
        while ripe := [base for base in self.hidden if len(self.children(base[1])) < 2]:
            await self.merge(ripe[:1])
            self.hidden.remove(ripe[0])

    async def merge(self, files: list[tuple[str, str]]) -> None:
        before = {path: Path(path).stat().st_blocks * 512 for _, path in files}
        volumes = [DoomedVolume(target=target, path=path, children=self.children(path)) for target, path in files]
        smaller = [min(before[one.path], *map(_allocated, one.children)) for one in volumes if one.children]
        done = await story.delete(self.manager, DeleteRequest(vm=VM, snapshot=uuid4(), volumes=volumes))
        assert done.error is None, done.error
        assert not [path for _, path in files if Path(path).exists()]
        assert moved(done) <= 1.1 * sum(smaller)


def _allocated(path: str) -> int:
    return Path(path).stat().st_blocks * 512


def moved(done: Transaction) -> int:
    return sum(outcome.moved_bytes for outcome in done.outcomes)


writes = st.tuples(
    st.just("write"),
    st.sampled_from(["vda", "vdb"]),
    st.tuples(st.integers(1, 255), st.integers(0, 60), st.integers(1, 30)),
)
moves = st.tuples(st.sampled_from(["snapshot", "snapshot", "revert", "delete"]), st.just(""), st.integers(0, 1000))


@pytest.mark.case("D3")
@pytest.mark.case("D4")
@settings(max_examples=4, deadline=None)
@given(st.lists(st.one_of(writes, moves), min_size=12, max_size=24))
def test_random_deletions_in_random_trees_leave_every_other_node_as_it_was(
    script: list[tuple[str, str, object]],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(follow(Path(directory).resolve(), script))


async def follow(root: Path, script: list[tuple[str, str, object]]) -> None:
    rig = Rig(root).build()
    tree = Tree(rig, rig.manager())
    for act, target, what in script:
        if act == "write":
            assert isinstance(what, tuple)
            pattern, at, length = what
            length = min(length, DISK_BYTES // KIB // 64 - at)
            rig.write_disk(target, pattern, at=f"{at * 64}k", length=f"{length * 64}k")
            continue
        if act == "snapshot":
            await tree.snapshot()
        elif tree.nodes:
            assert isinstance(what, int)
            number, now = what % len(tree.nodes), tree.read(tree.tops())
            await (tree.revert(number) if act == "revert" else tree.delete(number))
            assert act == "revert" or tree.read(tree.tops()) == now
        assert [tree.read(files) for files in tree.nodes] == tree.seen
    await check_no_stray(tree)


async def check_no_stray(tree: Tree) -> None:
    """Hold that deleting all that is left leaves the tops alone, with the bytes that they had."""
    now = tree.read(tree.tops())
    while tree.nodes:
        await tree.delete(0)
    assert tree.hidden == []
    assert tree.read(tree.tops()) == now
    assert {str(path) for path in tree.rig.images.iterdir()} == set(tree.tops().values())


@pytest.mark.case("D3")
async def test_node_with_three_children_is_hidden_and_goes_when_one_is_left(rig: Rig, manager: Manager) -> None:
    tree = Tree(rig, manager)
    await tree.snapshot()
    for number in range(3):
        rig.write_disk("vda", 0x70 + number, at=f"{number}M")
        await tree.snapshot()
        await tree.revert(0)
    await tree.revert(1)
    await tree.delete(0)
    assert len(tree.hidden) == len(rig.targets)
    for left in (2, 1, 0):
        await tree.delete(0)
        assert [tree.read(files) for files in tree.nodes] == tree.seen
        assert len(tree.nodes) == left
    await check_no_stray(tree)
