"""Deletions that could cost somebody's data: sizes, formats and names that differ, readers nobody knows, faults."""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from agent.errors import HypervisorTimeout, ImageInUse, ImageRefused
from agent.host import files, qemu_img
from agent.transactions.manager import Manager
from agent.wire.transaction import DeleteRequest, Transaction
from tests.agent.host.full_disk import full_file_system
from tests.agent.transactions import story
from tests.agent.transactions.rig import DISK_BYTES, Rig, raw_sha256

MIB = 1 << 20


def io(path: Path, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", "-d", "unmap", *words, path], check=True, stdout=subprocess.DEVNULL)


def img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def one(tmp_path: Path) -> Rig:
    """A host whose domain has one disk: each case here is about one chain."""
    return Rig(tmp_path, disks=1).build()


async def deleted(rig: Rig, manager: Manager, asked: DeleteRequest) -> Transaction:
    """Delete; what the domain reads, and nothing beside it, must be the same afterwards."""
    before = rig.contents()
    done = await story.delete(manager, asked)
    assert (done.error, rig.contents()) == (None, before)
    assert not [name for name in rig.files() if ".coldframe-" in name]
    img("check", "-q", "-f", "qcow2", rig.top("vda"))
    return done


def of_top(rig: Rig, taken: Transaction) -> DeleteRequest:
    """Ask for a snapshot on which the domain stands."""
    return story.delete_request(taken, {"vda": [str(rig.top("vda"))]})


@pytest.mark.case("D3")
@pytest.mark.parametrize("sizes", [(4, 2, 6), (6, 2, 4), (2, 6, 2), (4, 4, 2), (2, 2, 6)])
async def test_disk_that_was_resized_between_snapshots_reads_the_same(one: Rig, sizes: tuple[int, int, int]) -> None:
    """Where a shorter file hides the end of a longer one below it, that end must not come to light."""
    manager = one.manager()
    for number, size in enumerate(sizes):
        top = one.top("vda")
        img("resize", "-q", "-f", "qcow2", "--shrink", top, f"{size * MIB + 512}")
        io(top, f"write -q -P {0x51 + number} {MIB - 512} {(size - 1) * MIB}")
        taken, _ = await story.snapshot(manager)
        if number == 1:
            middle = taken
        above = taken
    await deleted(one, manager, story.delete_request(middle, {"vda": [above.volumes[0].path]}))


@pytest.mark.case("S11")
async def test_an_overlay_of_a_name_that_cannot_be_told_is_refused_and_leaves_no_guard(one: Rig) -> None:
    manager = one.manager()
    taken, _ = await story.snapshot(manager)
    odd = os.fsencode(Path(taken.volumes[0].path).parent) + b"/\xff.qcow2"
    img("create", "-q", "-f", "qcow2", "-b", taken.volumes[0].path, "-F", "qcow2", Path(os.fsdecode(odd)))
    with pytest.raises(ImageRefused, match=r"udcff\.qcow2 stands on it") as refused:
        await story.delete(manager, of_top(one, taken))
    msgspec.json.encode(refused.value.problem())
    assert not list((one.state_dir / "guards").iterdir())


def remade(path: Path, *options: str) -> None:
    """Make an image again with other options, on the same backing file and with the same contents."""
    new = path.with_name("remade")
    img("convert", "-q", "-f", "qcow2", "-O", "qcow2", *options, path, new)
    new.rename(path)


@pytest.mark.case("D3")
@pytest.mark.parametrize("heavy_below", [True, False], ids=["commit", "rebase"])
@pytest.mark.parametrize(
    "kind", ["compat=0.10", "cluster_size=4k", "cluster_size=512k", "compressed", "extended_l2=on"]
)
async def test_other_kinds_of_images_read_the_same(one: Rig, kind: str, heavy_below: bool) -> None:
    manager, root = one.manager(), one.top("vda")
    io(root, "write -q -P 3 0 3M" if heavy_below else "write -q -P 3 1M 64k")
    remade(root, *(["-c"] if kind == "compressed" else ["-o", kind]))
    taken, _ = await story.snapshot(manager)
    io(one.top("vda"), "write -q -z -u 512k 256k", "discard 1M 64k", "write -q -P 4 2M 4k")
    if not heavy_below:
        io(one.top("vda"), "write -q -P 5 1536k 2M")
    await deleted(one, manager, of_top(one, taken))


@pytest.mark.case("D5")
@pytest.mark.parametrize("name", ['json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{}"}}}}', "file:{}"])
async def test_overlay_that_names_its_backing_file_in_another_way_keeps_it(one: Rig, name: str) -> None:
    manager = one.manager()
    taken, _ = await story.snapshot(manager)
    by_hand = one.images / "by-hand.qcow2"
    img("create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", name.format(taken.volumes[0].path), by_hand, "4M")
    with pytest.raises(ImageRefused, match=r"by-hand\.qcow2 stands on it"):
        await manager.put(uuid4(), of_top(one, taken))


@contextmanager
def opened(path: Path) -> Iterator[None]:
    """Keep an image open, with all that it stands on, as a VM does that runs on it."""
    argv: list[str | Path] = ["qemu-io", "-f", "qcow2", path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"length\n")
        process.stdin.flush()
        process.stdout.readline()
        yield
        process.stdin.close()


@pytest.mark.case("D5")
async def test_frozen_file_that_an_unknown_vm_reads_is_kept(one: Rig, tmp_path: Path) -> None:
    manager = one.manager()
    taken, _ = await story.snapshot(manager)
    elsewhere = tmp_path / "elsewhere.qcow2"
    await qemu_img.create_overlay(elsewhere, Path(taken.volumes[0].path), "qcow2", DISK_BYTES)
    with opened(elsewhere), pytest.raises(ImageInUse):
        await manager.put(uuid4(), of_top(one, taken))
    assert Path(taken.volumes[0].path).exists()


@pytest.mark.case("D5")
async def test_nothing_is_deleted_while_it_is_not_known_what_other_domains_stand_on(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt lists nothing while one domain's hook sleeps, and this agent has never seen the others."""
    taken, _ = await story.snapshot(one.manager())

    async def hang() -> None:
        raise HypervisorTimeout(uri="played", call="domains", timeout_s=1)

    monkeypatch.setattr(one.hypervisor, "domains", hang)
    with pytest.raises(HypervisorTimeout):
        await one.manager().put(uuid4(), of_top(one, taken))
    assert Path(taken.volumes[0].path).exists()


@pytest.mark.case("D2")
async def test_frozen_file_that_could_not_be_put_back_comes_back_with_the_next_try(one: Rig) -> None:
    manager = one.manager()
    taken, _ = await story.snapshot(manager)
    story.change_everything(one)
    path = Path(taken.volumes[0].path)
    kept = raw_sha256(path)
    path.rename(files.staged_path(path, str(uuid4())))
    with pytest.raises(ImageRefused):  # the domain's disk stands on it; only its own name may be given back
        await manager.put(uuid4(), story.snapshot_request())
    asked = of_top(one, taken)
    id_ = uuid4()
    await manager.put(id_, asked)
    assert raw_sha256(path) == kept
    await manager.abort(id_)
    await deleted(one, manager, asked)
    assert not path.exists()


@pytest.mark.case("R2")
async def test_set_aside_leaf_comes_back_for_a_revert(one: Rig) -> None:
    manager = one.manager()
    taken, host_files = await story.snapshot(manager)
    kept = one.contents()
    await story.revert(manager, story.revert_request(taken, host_files, undo=None), host_files)
    path = Path(taken.volumes[0].path)
    again = story.revert_request(taken, host_files)
    shutil.copy(path, one.root / "copy")
    path.rename(files.staged_path(path, str(uuid4())))
    await story.revert(manager, again, host_files)
    assert one.contents() == kept


async def test_owner_and_mode_of_the_top_are_kept_when_it_is_committed_down(one: Rig) -> None:
    io(one.top("vda"), "write -q -P 3 0 3M")
    manager = one.manager()
    taken, _ = await story.snapshot(manager)
    top = one.top("vda")
    os.chown(top, 64055, 107)
    top.chmod(0o640)
    await deleted(one, manager, of_top(one, taken))
    facts = top.stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (64055, 107, 0o640)


@pytest.mark.case("S12")
@pytest.mark.parametrize("merge", ["commit", "rebase"])
async def test_disk_that_fills_up_in_the_middle_costs_nothing_and_a_repeat_finishes(one: Rig, merge: str) -> None:
    """Compressed clusters take more room where they are written to than they say."""
    with full_file_system(one.images, "24m"):
        await _fill_up(one, merge)


def seen(one: Rig) -> bytes:
    """Read what the domain sees of its disk, where there is room for it."""
    raw = one.root / "seen"
    img("convert", "-q", "-f", "qcow2", "-O", "raw", one.top("vda"), raw)
    return raw.read_bytes()


async def _fill_up(one: Rig, merge: str) -> None:
    top = one.images / "vda.qcow2"
    img("create", "-q", "-f", "qcow2", top, "16M")
    compressed = "write -q -c -P 3 {} 64k"
    manager = one.manager()
    if merge == "commit":
        io(top, "write -q -P 8 0 4M")
    else:
        await story.snapshot(manager)
        io(one.top("vda"), *(compressed.format(f"{at}k") for at in range(0, 12_288, 64)))
    taken, _ = await story.snapshot(manager)
    if merge == "commit":
        io(one.top("vda"), *(compressed.format(f"{at}k") for at in range(0, 12_288, 64)))
    else:
        io(one.top("vda"), "write -q -P 9 12M 4M")
    ballast = one.images / "ballast"
    free = files.free_bytes(one.images)
    ballast.write_bytes(b"x" * (free - 3 * MIB))
    before, asked = seen(one), of_top(one, taken)
    failed = await story.delete(manager, asked)
    assert failed.error is not None
    assert [outcome.done for outcome in failed.outcomes] == [False]
    ballast.unlink()
    assert seen(one) == before
    assert (await story.delete(manager, asked)).error is None
    assert seen(one) == before
