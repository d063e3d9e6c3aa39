"""Who stands on whom, where files cannot be read."""

import subprocess
from pathlib import Path

import pytest

from agent.errors import StorageFailed
from agent.host import dependents
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


def test_what_is_no_image_stands_on_nothing(top: Path) -> None:
    (top.parent / "link").symlink_to(top)
    (top.parent / "text").write_text("no image")
    for name in ("link", "text", "absent", ".", "text/below", "x" * 300):
        assert dependents.backing_of(top.parent / name) is None, name
        assert not dependents.is_image(top.parent / name), name
