"""Who stands on whom, where files cannot be read."""

import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import NeighbourUnreadable, StorageFailed
from agent.host import dependents, files
from tests.agent.host.used_up import no_descriptors


@pytest.fixture
def top(tmp_path: Path) -> Path:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "1M"], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top], check=True)
    return top


@pytest.mark.case("F5")
def test_an_image_that_cannot_be_read_now_is_not_taken_for_one_that_stands_on_nothing(top: Path) -> None:
    base = top.with_name("base.qcow2")
    for question in (dependents.backing_of, dependents.is_image, dependents.chain_of, dependents.standing_on):
        with no_descriptors(), pytest.raises(StorageFailed, match="Too many open files"):
            question(top)
    assert dependents.backing_of(top) == base
    assert dependents.standing_on(base) == [top]


@pytest.mark.parametrize(("offset", "garbage"), [(20, b"\0\0\0\1"), (72, b"\xff" * 8), (8, b"\xff" * 8)])
def test_a_file_that_begins_as_an_image_and_is_not_understood_may_stand_on_anything(
    top: Path, offset: int, garbage: bytes
) -> None:
    """QEMU may understand it, as one of a later version: nothing may go that such a file lies beside."""
    other = top.with_name("other.qcow2")
    data = bytearray(top.read_bytes())
    data[offset : offset + len(garbage)] = garbage
    other.write_bytes(data)
    with pytest.raises(NeighbourUnreadable, match=r"other.qcow2 lies beside .*nothing was touched. Move it"):
        dependents.standing_on(top.with_name("base.qcow2"))
    other.rename(other.with_name(f"{files.STAGE_PREFIX}half-there"))
    assert dependents.standing_on(top.with_name("base.qcow2")) == [top]


ASKED = """
import sys
from pathlib import Path
from agent.errors import NeighbourUnreadable
from agent.host import dependents
try:
    print(dependents.standing_on(Path(sys.argv[1])))
except NeighbourUnreadable as err:
    print(err.problem().detail)
"""


def test_a_file_that_cannot_be_read_is_named_with_the_way_out(top: Path) -> None:
    """As root cannot where the directory is on somebody else's file server."""
    base, secret = top.with_name("base.qcow2"), top.with_name("secret")
    secret.write_bytes(b"raw")
    secret.chmod(0)
    no_override = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    command = [*no_override, sys.executable, "-c", ASKED, str(base)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"{secret} lies beside {base} and cannot be read as an image (Permission denied)" in told
    assert "nothing was touched. Move it to a directory without frozen files, or make it readable" in told
    secret.chmod(0o600)
    assert dependents.standing_on(base) == [top]


def test_what_is_no_image_stands_on_nothing(top: Path) -> None:
    (top.parent / "link").symlink_to(top)
    (top.parent / "text").write_text("no image")
    for name in ("link", "text", "absent", ".", "text/below", "x" * 300):
        assert dependents.backing_of(top.parent / name) is None, name
        assert not dependents.is_image(top.parent / name), name
