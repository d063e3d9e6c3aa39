"""The planner: facts in, steps out."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import (
    DiskAttached,
    DiskDetached,
    DiskUnknown,
    DiskUnsupported,
    FrozenFileAltered,
    HostFileDamaged,
    HostFileMissing,
    HostFileNotFound,
    ImageRefused,
    NoSpace,
    SnapshotHasChildren,
)
from agent.transactions import plan
from agent.transactions.model import (
    CreateOverlay,
    Doomed,
    Facts,
    Plan,
    RemoveFile,
    Room,
    SetAsideHostFile,
    SwapHostFile,
    SwitchDisks,
    flat,
)
from agent.transactions.plan import overlay_path, plan_revert, plan_snapshot
from agent.transactions.plan_delete import plan_delete
from agent.wire.host_file import HostFile, MissingHostFile
from agent.wire.transaction import FrozenVolume, HostFileRef, RevertRequest, SnapshotRequest
from agent.wire.vm import Disk, Image

VM, TX, SNAPSHOT = uuid4(), UUID("0f7c2c54-6a63-4a0e-9d0a-6ad2a0f3c0de"), uuid4()
IMAGES = Path("/images")
STAGING = Path("/state/transactions/tx")


def image(path: str = "/images/a.qcow2", **changes: object) -> Image:
    return msgspec.structs.replace(Image.example(), **{"path": path, "fingerprint": "1:1", **changes})


def disk(target: str = "vda", **changes: object) -> Disk:
    top = image(f"/images/{target}.qcow2")
    made = Disk(target=target, path=top.path, format="qcow2", chain_depth=1, chain=[top])
    return msgspec.structs.replace(made, **changes)


DEVICES = {IMAGES: 1, STAGING.parent: 2}


def facts(*disks: Disk, frozen: dict[str, list[Image]] | None = None, **changes: object) -> Facts:
    chosen = disks or (disk("vda"), disk("vdb"))
    tops = [d.chain[0] for d in chosen if d.chain] + [chain[0] for chain in (frozen or {}).values()]
    values: dict[str, object] = {
        "transaction": TX,
        "name": "win11",
        "disks": list(chosen),
        "staging": STAGING,
        "host_file_paths": {"nvram": Path("/nvram/w.fd"), "tpm": Path("/swtpm/w")},
        "present": [HostFile.example(), msgspec.structs.replace(HostFile.example(), type="tpm", format="tar")],
        "frozen": frozen or {},
        "room": Room({IMAGES: 10**9, STAGING.parent: 10**9}, DEVICES),
        "overlay_bytes": {top.path: 262_144 for top in tops},
        **changes,
    }
    return Facts(**values)  # type: ignore[arg-type]  # a factory with overrides


def snapshot(**changes: object) -> SnapshotRequest:
    return msgspec.structs.replace(SnapshotRequest(vm=VM, snapshot=SNAPSHOT), **changes)


def revert(*targets: str, **changes: object) -> RevertRequest:
    volumes = [FrozenVolume(target=target, path=f"/images/{target}.frozen", fingerprint="1:1") for target in targets]
    return msgspec.structs.replace(RevertRequest(vm=VM, snapshot=SNAPSHOT, volumes=volumes), **changes)


def frozen(*targets: str) -> dict[str, list[Image]]:
    return {f"/images/{target}.frozen": [image(f"/images/{target}.frozen")] for target in targets}


def ref(type_: str = "nvram") -> HostFileRef:
    return HostFileRef(type=type_, format="raw", size_bytes=1, sha256="0" * 64)  # type: ignore[arg-type]


def test_planner_imports_nothing_that_touches_the_outside() -> None:
    source = inspect.getsource(plan)
    assert not [word for word in ("import os", "subprocess", "asyncio", "agent.host") if word in source]


def test_snapshot_makes_one_overlay_a_disk_and_one_switch_for_all() -> None:
    made = plan_snapshot(facts(), snapshot())
    overlays = [step for step in flat(made.stage) if isinstance(step, CreateOverlay)]
    (switch,) = [step for step in flat(made.switch) if isinstance(step, SwitchDisks)]
    assert [step.target for step in overlays] == ["vda", "vdb"]
    assert switch.sources == {step.target: (step.backing, step.path) for step in overlays}


def test_snapshot_captures_both_host_files_before_the_commit() -> None:
    assert {"capture nvram", "capture tpm"} <= {step.name for step in flat(plan_snapshot(facts(), snapshot()).stage)}


@pytest.mark.case("S3")
def test_snapshot_without_host_files_captures_none() -> None:
    made = plan_snapshot(facts(), snapshot(host_files="none"))
    assert not [name for name in made.names() if name.startswith("capture")]


@pytest.mark.case("S5")
def test_missing_host_file_fails_a_required_snapshot_and_is_told_by_a_best_effort_one() -> None:
    lost = MissingHostFile.example()
    seen = facts(present=[HostFile.example()], missing=[lost])
    with pytest.raises(HostFileMissing):
        plan_snapshot(seen, snapshot())
    assert plan_snapshot(seen, snapshot(host_files="best-effort")).missing == [lost]


def test_damaged_host_file_is_told_as_damaged() -> None:
    lost = msgspec.structs.replace(MissingHostFile.example(), code="host-file-damaged")
    with pytest.raises(HostFileDamaged):
        plan_snapshot(facts(missing=[lost]), snapshot())


@pytest.mark.case("S10")
@pytest.mark.parametrize("reason", ["raw", "network", "block device", "read-only", "shareable", "cd-rom"])
def test_uncoverable_disk_is_refused_by_name_or_listed_when_excluded(reason: str) -> None:
    odd = Disk(target="sda", path="/dev/x", format="raw", excluded_because=reason)
    with pytest.raises(DiskUnsupported, match=rf"sda.*{reason}"):
        plan_snapshot(facts(disk("vda"), odd), snapshot())
    assert plan_snapshot(facts(disk("vda"), odd), snapshot(exclude=["sda"])).excluded == ["sda"]


def test_empty_drive_needs_no_exclusion_and_is_listed() -> None:
    drive = Disk(target="sda", path=None, format=None, excluded_because="no medium")
    assert plan_snapshot(facts(disk("vda"), drive), snapshot()).excluded == ["sda"]


def test_excluding_a_disk_that_is_not_there_is_refused() -> None:
    with pytest.raises(DiskUnknown, match="vdz"):
        plan_snapshot(facts(), snapshot(exclude=["vdz"]))


def test_unreadable_chain_is_refused_by_name() -> None:
    with pytest.raises(ImageRefused, match="broken"):
        plan_snapshot(facts(disk("vda", chain=[], problem="broken")), snapshot())


@pytest.mark.case("S12")
def test_too_little_space_says_need_and_have() -> None:
    with pytest.raises(NoSpace) as caught:
        plan_snapshot(facts(room=Room({IMAGES: 500_000, STAGING.parent: 10**9}, DEVICES)), snapshot())
    assert caught.value.facts == {"path": "/images", "have_bytes": 500_000, "need_bytes": 2 * 262_144}


def test_reserve_is_kept_free() -> None:
    with pytest.raises(NoSpace):
        plan_snapshot(facts(reserve_bytes=10**9), snapshot())


@pytest.mark.case("R5")
def test_detached_member_disk_is_refused_by_name() -> None:
    with pytest.raises(DiskDetached, match="vdb"):
        plan_revert(facts(disk("vda"), frozen=frozen("vda", "vdb")), revert("vda", "vdb"))


@pytest.mark.case("R5")
def test_attached_disk_is_refused_by_name_unless_the_snapshot_excluded_it() -> None:
    seen = facts(disk("vda"), disk("vdb"), frozen=frozen("vda"))
    with pytest.raises(DiskAttached, match="vdb"):
        plan_revert(seen, revert("vda"))
    assert plan_revert(seen, revert("vda", excluded=["vdb"])).switch


@pytest.mark.case("R5")
def test_frozen_file_that_was_written_to_is_refused() -> None:
    changed = {"/images/vda.frozen": [image("/images/vda.frozen", fingerprint="1:2")]}
    with pytest.raises(FrozenFileAltered, match="written to after it was frozen"):
        plan_revert(facts(disk("vda"), frozen=changed), revert("vda"))


def test_revert_swaps_host_files_in_before_the_disks_switch() -> None:
    request = revert("vda", host_files=[ref("nvram"), ref("tpm")], undo=uuid4())
    kinds = [type(step) for step in flat(plan_revert(facts(disk("vda"), frozen=frozen("vda")), request).switch)]
    assert kinds == [SwapHostFile, SwapHostFile, SwitchDisks]


@pytest.mark.case("R6")
def test_tpm_that_a_complete_snapshot_did_not_have_is_set_aside_and_otherwise_kept() -> None:
    seen = facts(disk("vda"), frozen=frozen("vda"))
    removed = plan_revert(seen, revert("vda", remove=["tpm"], undo=uuid4()))
    assert [step.type for step in flat(removed.switch) if isinstance(step, SetAsideHostFile)] == ["tpm"]
    assert removed.kept == ["nvram"]
    assert plan_revert(seen, revert("vda", undo=uuid4())).kept == ["nvram", "tpm"]


@pytest.mark.case("R9")
def test_one_volume_alone_leaves_host_files_and_other_disks_alone() -> None:
    seen = facts(disk("vda"), disk("vdb"), frozen=frozen("vdb"))
    made = plan_revert(seen, revert("vdb", alone=True, host_files=[ref()], remove=["tpm"], undo=uuid4()))
    assert not made.receive
    assert made.kept == ["nvram", "tpm"]
    assert [step.name for step in flat(made.switch)] == ["switch-disks vdb"]


def test_without_undo_point_our_own_old_overlay_goes_and_a_foreign_one_stays() -> None:
    ours = f"/images/x.cf-{TX}.vda.qcow2"
    kept = plan_revert(facts(disk("vda"), frozen=frozen("vda")), revert("vda"))
    gone = plan_revert(facts(disk("vda", path=ours, chain=[image(ours)]), frozen=frozen("vda")), revert("vda"))
    assert "/images/vda.qcow2" not in [step.path for step in flat(kept.clean) if isinstance(step, RemoveFile)]
    assert ours in [step.path for step in flat(gone.clean) if isinstance(step, RemoveFile)]


def test_old_overlay_that_a_snapshot_holds_or_something_stands_on_stays() -> None:
    ours = f"/images/x.cf-{TX}.vda.qcow2"
    standing = facts(disk("vda", path=ours, chain=[image(ours)]), frozen=frozen("vda"), in_use=frozenset({ours}))
    unheld = facts(disk("vda", path=ours, chain=[image(ours)]), frozen=frozen("vda"))
    for made in (plan_revert(standing, revert("vda")), plan_revert(unheld, revert("vda", held=[ours]))):
        assert ours not in [step.path for step in flat(made.clean) if isinstance(step, RemoveFile)]


def test_host_file_for_a_device_that_is_gone_is_refused() -> None:
    seen = facts(disk("vda"), frozen=frozen("vda"), host_file_paths={}, present=[])
    with pytest.raises(HostFileNotFound):
        plan_revert(seen, revert("vda", host_files=[ref()]))


def doomed(children: Mapping[str, Image | None] | None = None, path: str = "/images/f", **changes: object) -> Doomed:
    base = image(path, backing="/images/base", backing_format="qcow2")
    values: dict[str, object] = {
        "dependents": list(children or {}),
        "frozen": base,
        "written_by": [],
        "staged": "/images/.f",
        **changes,
    }
    return Doomed(target="vda", path=path, children=dict(children or {}), **values)  # type: ignore[arg-type]


def child(path: str = "/images/c", **changes: object) -> dict[str, Image | None]:
    return {path: image(path, **{"backing": "/images/f", **changes})}


def several(*sizes: int) -> list[Doomed]:
    """Make merges of as many disks, whose children hold so many bytes."""
    paths = [(f"/images/f{number}", f"/images/c{number}") for number in range(len(sizes))]
    return [
        doomed(child(above, backing=path, allocated_bytes=size), path)
        for size, (path, above) in zip(sizes, paths, strict=True)
    ]


GOING = ["set-aside frozen vda", "remove frozen vda"]


def deletion(*volumes: Doomed, free: int = 10**12) -> Plan:
    return plan_delete(list(volumes), Room({IMAGES: free, Path("/other"): free}, {IMAGES: 1, Path("/other"): 2}))


def kinds(plan_: Plan) -> list[str]:
    """Name the kinds of steps, group by group."""
    return [" ".join(step.name.split()[0] for step in group) for group in [*plan_.switch, *plan_.clean]]


def test_leaf_is_removed_without_a_merge() -> None:
    assert deletion(doomed()).names() == GOING


@pytest.mark.case("D4")
def test_the_side_with_fewer_bytes_is_moved() -> None:
    down, up = child(allocated_bytes=10), child(allocated_bytes=10**13)
    assert kinds(deletion(doomed(down))) == ["commit", "replace"]
    assert kinds(deletion(doomed(up))) == ["rebase", "set-aside", "remove"]


@pytest.mark.case("D2")
def test_files_are_written_to_after_the_rebases_and_removed_last_of_all() -> None:
    assert kinds(deletion(*several(10, 10**13, 20))) == [
        "rebase",
        "set-aside",
        "commit commit",
        "replace replace",
        "remove",
    ]


@pytest.mark.parametrize(
    "why_not",
    [
        doomed(child(allocated_bytes=10), private=False),
        doomed(child(allocated_bytes=10, virtual_size_bytes=7)),
        doomed(child("/other/c", allocated_bytes=10)),
    ],
    ids=["somebody else sees it", "another size", "another directory"],
)
def test_a_child_is_not_committed_down_where_that_would_be_noticed(why_not: Doomed) -> None:
    assert kinds(deletion(why_not)) == ["rebase", "set-aside", "remove"]


@pytest.mark.case("D2")
def test_too_little_space_for_what_is_moved_is_refused_before_anything_is_begun() -> None:
    with pytest.raises(NoSpace) as caught:
        deletion(*several(10, 10), free=19)
    assert caught.value.facts == {"path": "/images", "have_bytes": 19, "need_bytes": 20}
    assert deletion(doomed(), free=0).switch


def test_a_file_cannot_grow_beyond_its_disk() -> None:
    full = image("/images/f", backing="/images/base", virtual_size_bytes=100, allocated_bytes=100)
    assert deletion(doomed(child(allocated_bytes=50, virtual_size_bytes=100), frozen=full), free=0).switch


def test_child_that_stands_below_already_is_not_rebased_again() -> None:
    settled = child(backing="/images/base")
    assert deletion(doomed(settled, dependents=[])).names() == GOING


def test_second_child_an_unknown_overlay_and_a_writer_are_refused() -> None:
    with pytest.raises(SnapshotHasChildren):
        deletion(doomed(child() | child("/images/d")))
    with pytest.raises(ImageRefused, match="belongs to no snapshot"):
        deletion(doomed(dependents=["/images/by-hand"]))
    with pytest.raises(ImageRefused, match="a disk of win11, which writes to it"):
        deletion(doomed(written_by=["win11"]))
    with pytest.raises(ImageRefused, match="a disk of twin too"):
        deletion(doomed(child(), taken={"/images/c": ["twin"]}))


def test_merges_that_have_a_file_in_common_are_refused() -> None:
    above = doomed(child("/images/d", backing="/images/c"), "/images/c")
    with pytest.raises(ImageRefused, match="another merge of the same request"):
        deletion(doomed(child()), above)


@pytest.mark.parametrize("frozen_file", [None, image("/images/f")], ids=["gone", "there"])
def test_child_that_is_gone_is_not_taken_for_no_child(frozen_file: Image | None) -> None:
    """Its file system may not be mounted, and it would be worth nothing without what it stands on."""
    with pytest.raises(ImageRefused, match="stood on the file that is to go and is gone"):
        deletion(doomed({"/other/c": None}, dependents=[], frozen=frozen_file))


def test_frozen_file_that_is_gone_already_needs_nothing() -> None:
    assert deletion(doomed(frozen=None)) == Plan()


names = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=255
).filter(lambda name: len(name.encode()) <= 255 and name not in (".", ".."))


@pytest.mark.case("X8")
@given(names, st.sampled_from(["vda", "sdaa", "hdb"]))
def test_overlay_names_fit_the_file_system_and_do_not_grow(name: str, target: str) -> None:
    first = overlay_path(f"/images/{name}", TX, target)
    second = overlay_path(first, UUID(int=7), target)
    assert len(Path(first).name.encode()) <= 255
    assert len(second) == len(first)
    assert Path(first).parent == IMAGES


@given(st.sets(st.sampled_from(["vda", "vdb", "vdc", "vdd"]), min_size=1), st.booleans())
def test_every_step_of_a_plan_has_a_name_of_its_own(targets: set[str], undo: bool) -> None:
    seen = facts(*(disk(target) for target in sorted(targets)), frozen=frozen(*targets))
    request = revert(*sorted(targets), host_files=[ref("nvram"), ref("tpm")], undo=uuid4() if undo else None)
    for made in (plan_snapshot(seen, snapshot()), plan_revert(seen, request)):
        assert len(set(made.names())) == len(made.names())
        assert msgspec.json.decode(msgspec.json.encode(made), type=Plan) == made
