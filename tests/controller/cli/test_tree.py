"""The drawn tree, and text that nobody can trust."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest

from agent.wire.fleet import Vm
from agent.wire.snapshot import Snapshot, SnapshotHostFiles
from controller.cli.text import printable, size
from tests.controller.cli.conftest import Coldframe
from tests.controller.cli.fake import FakeController

START = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)


def snapshot(number: int, parent: int | None = None, **changes: object) -> Snapshot:
    return msgspec.structs.replace(
        Snapshot.example(),
        **{
            "uuid": UUID(int=number << 96),
            "parent": None if parent is None else UUID(int=parent << 96),
            "name": f"s{number}",
            "created_at": START + timedelta(minutes=number),
            "current": False,
            **changes,
        },
    )


def drawn(fake: FakeController, coldframe: Coldframe, *snapshots: Snapshot) -> str:
    fake.answer("GET", "/v1/vms/win11", Vm.example())
    fake.page("/v1/vms/win11/snapshots", list(snapshots))
    done = coldframe("snapshot", "tree", "win11")
    assert (done.status, done.err) == (0, "")
    return done.out


def test_the_tree_shows_branches_parts_and_where_the_vm_stands(fake: FakeController, coldframe: Coldframe) -> None:
    partial = SnapshotHostFiles(state="partial", expected=["nvram", "tpm"], missing=["tpm"], reason="tpm: too large")
    bios = SnapshotHostFiles(state="complete", expected=[])
    out = drawn(
        fake,
        coldframe,
        snapshot(1),
        snapshot(2, 1, current=True, host_files=partial),
        snapshot(3, 1, automatic=True, protected=True, host_files=bios, excluded=["vdb"]),
        snapshot(4, 2, state="deleting"),
    )
    assert out == (
        "win11 (6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11) on kvm1, shut-off\n"
        "└── s1  00000001  2026-11-02 09:31:00  ready\n"
        "    vda 20.0 GiB · NVRAM ✔ · TPM ✔\n"
        "    ├── s2  00000002  2026-11-02 09:32:00  ready\n"
        "    │   vda 20.0 GiB · NVRAM ✔ · TPM ✘\n"
        "    │   partial: tpm: too large\n"
        "    │   ├── ● you are here\n"
        "    │   └── s4  00000004  2026-11-02 09:34:00  deleting\n"
        "    │       vda 20.0 GiB · NVRAM ✔ · TPM ✔\n"
        "    └── s3  00000003  2026-11-02 09:33:00  ready  automatic  protected\n"
        "        vda 20.0 GiB · NVRAM – · TPM – · without vdb\n"  # noqa: RUF001 - the dash for nothing
    )


def test_without_a_current_snapshot_the_vm_stands_on_its_root(fake: FakeController, coldframe: Coldframe) -> None:
    assert drawn(fake, coldframe, snapshot(1)).splitlines()[1] == "├── ● you are here"


def test_a_snapshot_whose_parent_is_gone_hangs_on_the_root(fake: FakeController, coldframe: Coldframe) -> None:
    assert "└── s2" in drawn(fake, coldframe, snapshot(2, 1))


def test_a_very_long_chain_is_drawn(fake: FakeController, coldframe: Coldframe) -> None:
    chain = [snapshot(number, number - 1 if number > 1 else None) for number in range(1, 151)]
    assert "s150" in drawn(fake, coldframe, *chain)


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", ":smile:", "a\x1b[2Jb\nc", "\u202egpj.exe", "名 前"])
def test_odd_names_are_text_and_nothing_else(fake: FakeController, coldframe: Coldframe, name: str) -> None:
    out = drawn(fake, coldframe, snapshot(1, name=name))
    assert printable(name) in out
    assert "\x1b" not in out
    fake.page("/v1/snapshots", [snapshot(1, name=name)])
    assert printable(name) in coldframe("snapshot", "list").out


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**60, "1024.0 PiB")]
)
def test_sizes_have_binary_units(count: int | None, text: str) -> None:
    assert size(count) == text
