"""Image checks and leftovers over HTTP, on a host in a directory."""

import os
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from agent.client import AgentProblem
from agent.host import files
from agent.host.image_locks import ImageLock
from agent.transactions.plan import overlay_path
from agent.wire.transaction import SnapshotRequest
from agent.wire.upkeep import Leftover, UnwantedImage
from tests.agent.api.conftest import VM, Host, Serving


def overlay(host: Host, name: str = "stray.qcow2", backing: Path | None = None) -> Path:
    path = Path(overlay_path(str(host.root / "images" / name), uuid4(), "vda"))
    below = ["-F", "qcow2", "-b", str(backing)] if backing else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, path, "4M"], check=True)
    return path


async def listed(serving: Serving) -> dict[str, Leftover]:
    return {one.path: one for one in (await serving.client.leftovers()).items}


async def test_images_are_checked_in_the_order_that_was_asked_for(host: Host, serving: Serving) -> None:
    paths = [str(host.root / "images" / name) for name in ("vdb.qcow2", "absent.qcow2", "vda.qcow2")]
    states = await serving.client.check_images([*paths, "/etc/shadow"], deep=True)
    assert [state.path for state in states] == [*paths, "/etc/shadow"]
    assert [state.errors for state in states] == [0, None, 0, None]
    assert [state.exists for state in states[:3]] == [True, False, True]
    assert "outside" in str(states[3].problem)


async def test_an_overlay_of_a_domain_names_it_and_a_stray_one_names_nobody(host: Host, serving: Serving) -> None:
    id_ = uuid4()
    await serving.client.put_transaction(id_, SnapshotRequest(vm=VM, snapshot=uuid4()))
    await serving.client.commit(id_)
    stray = overlay(host)
    child = overlay(host, "child.qcow2", backing=stray)
    found = await listed(serving)
    (used,) = [one for one in found.values() if one.transaction == id_ and "vda" in one.path]
    assert (used.domains, used.kind) == (["win11"], "overlay")
    assert (found[str(stray)].domains, found[str(stray)].dependents) == ([], [str(child)])
    assert not any(one.removable for one in found.values())


async def test_what_ended_or_forgotten_work_staged_is_removed_and_nothing_else(host: Host, serving: Serving) -> None:
    ended, under_way = uuid4(), uuid4()
    await serving.client.put_transaction(ended, SnapshotRequest(vm=VM, snapshot=uuid4()))
    await serving.client.abort(ended)
    await serving.client.put_transaction(under_way, SnapshotRequest(vm=VM, snapshot=uuid4()))
    old, new, mine, theirs = (
        files.staged_path(host.nvram, token) for token in ("ab" * 8, "cd" * 8, str(ended), str(under_way))
    )
    for path in (old, new, mine, theirs):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    os.utime(theirs, (0, 0))
    stray = overlay(host)
    found = await listed(serving)
    assert {path for path, one in found.items() if one.removable} == {str(old), str(mine)}
    asked = [str(path) for path in (old, new, mine, theirs, stray, host.nvram)]
    assert await serving.client.remove_leftovers(asked) == [str(old), str(mine)]
    assert [path.exists() for path in (old, new, mine, theirs, stray, host.nvram)] == [False, True, False] + [True] * 3
    assert await serving.client.remove_leftovers(asked) == []


async def test_a_domain_whose_chain_cannot_be_read_is_named(host: Host, serving: Serving) -> None:
    (host.root / "images" / "vda.qcow2").unlink()
    assert (await serving.client.leftovers()).unreadable == ["win11"]


async def test_a_check_that_takes_too_long_is_stopped(host: Host, serving: Serving) -> None:
    with pytest.raises(AgentProblem) as caught:
        await serving.client.check_images([str(host.root / "images/vda.qcow2")], deep=True, timeout_s=0.000_001)
    assert caught.value.answer.code == "tool-timeout"


def unwanted(*paths: Path) -> list[UnwantedImage]:
    return [UnwantedImage(target=path.name[:3], path=str(path)) for path in paths]


@pytest.mark.case("D9")
async def test_disks_of_a_domain_that_is_gone_are_removed_all_or_none(host: Host, serving: Serving) -> None:
    id_, images = uuid4(), host.root / "images"
    view = await serving.client.put_transaction(id_, SnapshotRequest(vm=VM, snapshot=uuid4()))
    await serving.client.commit(id_)
    chains = [Path(path) for one in view.volumes for path in (one.path, one.overlay)]

    async def refused(path: Path, reason: str) -> None:
        with pytest.raises(AgentProblem, match=reason):
            await serving.client.remove_images(unwanted(*chains, path))
        assert all(one.exists() for one in (*chains, path))

    await refused(chains[0], "win11 uses it")
    host.hypervisor.by_uuid.pop(VM)
    outside, link = host.root / "outside.qcow2", images / "link.qcow2"
    outside.write_bytes(b"x")
    link.symlink_to(chains[0])
    await refused(outside, "outside the allowed")
    await refused(link, "not a plain file")
    admin = overlay(host, "admin.qcow2", backing=chains[0])
    await refused(chains[1], f"{admin.name} stands on it")
    admin.unlink()
    with ImageLock.take("vda", chains[0]):  # as a reader, or a clone that is being made of it
        await refused(chains[1], "locked by another process")
    assert set(await serving.client.remove_images(unwanted(*chains))) == set(map(str, chains))
    assert await serving.client.remove_images(unwanted(*chains)) == []
    assert {path.name for path in images.iterdir()} == {link.name}
