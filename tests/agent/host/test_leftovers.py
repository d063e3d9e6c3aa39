"""Finding files that are named as ours, in directories that hold much else."""

import json
import os
import subprocess
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agent.host import files, leftovers
from agent.host.leftovers import Findings, Place
from agent.transactions.plan import overlay_path


def search(path: Path, levels: int = 3, **limits: int) -> Findings:
    return leftovers.search([Place(path, levels)], **limits)


def test_overlays_and_staged_files_are_found_by_their_names_with_the_transaction(tmp_path: Path) -> None:
    id_ = uuid4()
    overlay = Path(overlay_path(str(tmp_path / "a b.qcow2"), id_, "vda"))
    staged = files.staged_path(tmp_path / "x_VARS.fd", str(id_))
    unnamed = files.staged_path(tmp_path / "x_VARS.fd", "00ff00ff00ff00ff")
    for path in (overlay, staged, unnamed, tmp_path / "win11.qcow2", tmp_path / "my.cf-notes.vda.qcow2"):
        path.touch()
    found = {one.path: (one.is_overlay, one.transaction) for one in search(tmp_path).found}
    assert found == {overlay: (True, id_), staged: (False, id_), unnamed: (False, None)}


def test_directories_are_looked_into_as_deep_as_was_asked_and_links_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "images"
    deep = place / "one" / "two"
    deep.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (place / "link").symlink_to(outside)
    name = f"x.cf-{UUID(int=0)}.vda.qcow2"
    for directory in (place, deep, outside):
        (directory / name).touch()
    (place / f"l.cf-{UUID(int=0)}.vda.qcow2").symlink_to(outside / name)
    assert [one.path for one in search(place, 0).found] == [place / name]
    assert {one.path for one in search(place, 2).found} == {place / name, deep / name}


def test_a_file_that_cannot_be_read_makes_the_search_incomplete_and_does_not_end_it() -> None:
    assert search(Path(f"/proc/{os.getpid()}"), 0) == Findings(complete=False)  # "mem" is regular, and reading is EIO


def test_names_that_cannot_be_told_are_not_ours_and_are_spelt_out_as_dependents(tmp_path: Path) -> None:
    overlay = Path(overlay_path(str(tmp_path / "a.qcow2"), uuid4(), "vda"))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", overlay, "1M"], check=True)
    for name in (b"\xff.qcow2", b"\xff" + os.fsencode(overlay.name), b".coldframe-\xff"):
        odd = os.fsencode(tmp_path) + b"/" + name
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", overlay, odd], check=True)
    found = search(tmp_path)
    assert [one.path for one in found.found] == [overlay]
    assert json.dumps(sorted(found.standing_on[overlay]), ensure_ascii=False).encode().count(b"xff") == 3


def test_who_stands_on_an_overlay_is_told(tmp_path: Path) -> None:
    overlay = Path(overlay_path(str(tmp_path / "a.qcow2"), uuid4(), "vda"))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", overlay, "1M"], check=True)
    top = tmp_path / "admin.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", overlay.name, top],
        check=True,
        cwd=tmp_path,
    )
    assert search(tmp_path).standing_on == {overlay: [str(top)]}


def test_a_search_has_an_end_and_says_that_it_met_it(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).touch()
    assert search(tmp_path, entries_limit=5).complete
    assert not search(tmp_path, entries_limit=4).complete
    assert search(tmp_path / "absent").complete


@pytest.mark.parametrize("seconds", [2**40, -(2**40), 2**62, -(2**62)])
def test_a_file_dated_beyond_all_calendars_is_found_as_any_other(tmp_path: Path, seconds: int) -> None:
    overlay = tmp_path / f"x.cf-{UUID(int=0)}.vda.qcow2"
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)  # others cut a date to what they can hold
    try:
        overlay.touch()
        subprocess.run(["touch", "-d", f"@{seconds}", overlay], check=True)
        (found,) = search(tmp_path).found
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert found.mtime.year == (9999 if seconds > 0 else 1)
