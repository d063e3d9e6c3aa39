"""Chains of real images, and what an enemy could make of them."""

import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from agent.errors import ChainTooDeep, ImageRefused, InternalSnapshot, StorageFailed
from agent.host import images
from agent.wire.vm import Image

SIZE = 4 << 20


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """The one allowed directory, with something secret beside it."""
    (tmp_path / "secret.qcow2").touch()
    directory = tmp_path / "images"
    directory.mkdir()
    return directory


def create(path: Path, backing: str | None = None, backing_format: str = "qcow2", *options: str) -> Path:
    below = ["-u", "-b", backing, "-F", backing_format] if backing else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, *options, path, str(SIZE)], check=True)
    return path


def chain_of(pool: Path, count: int) -> Path:
    top = create(pool / "0.qcow2")
    for number in range(1, count):
        top = create(pool / f"{number}.qcow2", str(top))
    return top


def read(path: Path, *allowed: Path, depth: int = 100) -> list[Image]:
    return images.read_chain("vda", path, "qcow2", list(allowed) or [path.parent], depth)


def test_a_chain_is_read_from_the_top_to_the_root(pool: Path) -> None:
    top = chain_of(pool, 3)
    chain = read(top)
    assert [image.path for image in chain] == [f"{pool}/{number}.qcow2" for number in (2, 1, 0)]
    assert [image.backing for image in chain] == [f"{pool}/1.qcow2", f"{pool}/0.qcow2", None]
    assert [image.backing_format for image in chain] == ["qcow2", "qcow2", None]
    facts = top.stat()
    assert (chain[0].virtual_size_bytes, chain[0].allocated_bytes) == (SIZE, facts.st_blocks * 512)
    assert chain[0].fingerprint == f"{facts.st_size}:{facts.st_mtime_ns}" == images.fingerprint(top)


def test_a_fingerprint_changes_when_a_guest_writes(pool: Path) -> None:
    top = create(pool / "top.qcow2")
    before = images.fingerprint(top)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 64k", top], check=True, stdout=subprocess.DEVNULL)
    assert images.fingerprint(top) != before
    with pytest.raises(StorageFailed):
        images.fingerprint(pool / "absent")


def test_a_raw_template_ends_the_chain_whatever_it_holds(pool: Path) -> None:
    root = create(pool / "template.img", "/etc/shadow")  # a qcow2 header inside a raw disk is the guest's affair
    chain = read(create(pool / "top.qcow2", str(root), "raw"))
    assert [(image.format, image.backing) for image in chain] == [("qcow2", str(root)), ("raw", None)]
    assert chain[1].virtual_size_bytes == root.stat().st_size


def test_relative_names_are_beside_the_file_that_names_them(pool: Path) -> None:
    (pool / "deep").mkdir()
    create(pool / "root.qcow2")
    create(pool / "deep" / "middle.qcow2", "../root.qcow2")
    top = create(pool / "top.qcow2", "deep/middle.qcow2")
    assert [image.path for image in read(top)] == [
        str(pool / name) for name in ("top.qcow2", "deep/middle.qcow2", "root.qcow2")
    ]


def test_a_linked_pool_directory_is_followed_and_paths_come_back_resolved(pool: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(pool)
    create(pool / "root.qcow2")
    create(pool / "top.qcow2", f"{link}/root.qcow2")
    chain = read(link / "top.qcow2", pool)
    assert [image.path for image in chain] == [f"{pool}/top.qcow2", f"{pool}/root.qcow2"]
    assert chain[0].backing == f"{pool}/root.qcow2"


@pytest.mark.case("S11")
def test_a_link_to_a_name_that_cannot_be_told_is_refused(pool: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(pool) + b"/\xff.qcow2"))
    create(odd)
    (pool / "top.qcow2").symlink_to(odd)
    with pytest.raises(ImageRefused, match="not UTF-8"):
        read(pool / "top.qcow2", pool)


@pytest.mark.case("S11")
def test_a_relative_name_that_a_link_gives_two_meanings_is_refused(pool: Path) -> None:
    for name in ("a", "b"):
        (pool / name).mkdir()
        create(pool / name / "root.qcow2")
    create(pool / "a" / "top.qcow2", "root.qcow2")
    (pool / "b" / "top.qcow2").symlink_to(pool / "a" / "top.qcow2")
    with pytest.raises(ImageRefused, match="is another one beside"):
        read(pool / "b" / "top.qcow2", pool)


@pytest.mark.case("S11")
@pytest.mark.parametrize(
    "name",
    ["json:{}", "nbd://host/x", "http://host/x", "file:/etc/shadow", "fat:/etc", "12:30.qcow2", ":x", "ssh://h/p"],
)
def test_a_protocol_name_is_refused(pool: Path, name: str) -> None:
    with pytest.raises(ImageRefused, match="through a protocol"):
        read(create(pool / "top.qcow2", name))


@pytest.mark.case("X8")
@pytest.mark.parametrize("name", ["a:b.qcow2", "-rf", "json:{}", "a,b=c", "\"'`$(id) ü\n", "%s%n", "x" * 255])
def test_odd_names_below_an_absolute_path_work(pool: Path, name: str) -> None:
    root = create(pool / name)
    top = create(pool / "top.qcow2", str(root))
    assert [image.path for image in read(top)] == [str(top), str(root)]


@pytest.mark.case("S11")
@pytest.mark.parametrize("backing", ["/etc/shadow", "../secret.qcow2", "{tmp}/secret.qcow2", "sub/../../secret.qcow2"])
def test_a_backing_file_outside_is_refused(pool: Path, tmp_path: Path, backing: str) -> None:
    (pool / "sub").mkdir()
    top = create(pool / "top.qcow2", backing.format(tmp=tmp_path), "raw")
    with pytest.raises(ImageRefused, match="outside the allowed image directories"):
        read(top)


@pytest.mark.case("S11")
def test_an_image_outside_is_refused(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageRefused, match=r"Disk vda: .*secret.qcow2 lies outside"):
        read(tmp_path / "secret.qcow2", pool)
    beside = tmp_path / "images-2"  # a name that only begins like the allowed one
    beside.mkdir()
    with pytest.raises(ImageRefused, match="outside"):
        read(create(beside / "top.qcow2"), pool)
    with pytest.raises(ImageRefused, match="outside"):
        images.read_chain("vda", pool, "qcow2", [], 10)


@pytest.mark.case("S11")
def test_a_link_that_leads_out_is_refused_at_the_top_and_below(pool: Path, tmp_path: Path) -> None:
    link = pool / "link.qcow2"
    link.symlink_to(tmp_path / "secret.qcow2")
    with pytest.raises(ImageRefused, match=r"link.qcow2, which is .*secret.qcow2, lies outside"):
        read(link)
    with pytest.raises(ImageRefused, match="lies outside"):
        read(create(pool / "top.qcow2", str(link)))
    (pool / "round").symlink_to(pool / "round")
    with pytest.raises(ImageRefused, match="cannot be resolved"):
        read(pool / "round")


@pytest.mark.case("S11")
def test_a_missing_image_is_refused_by_name(pool: Path) -> None:
    with pytest.raises(ImageRefused, match=r"gone.qcow2: it does not exist"):
        read(pool / "gone.qcow2")
    with pytest.raises(ImageRefused, match=r"top.qcow2: the backing file .*gone.qcow2 does not exist"):
        read(create(pool / "top.qcow2", str(pool / "gone.qcow2")))


@pytest.mark.case("S11")
def test_internal_snapshots_are_refused_wherever_they_are(pool: Path) -> None:
    root = create(pool / "root.qcow2")
    subprocess.run(["qemu-img", "snapshot", "-c", "one", root], check=True)
    with pytest.raises(InternalSnapshot, match=r"root.qcow2 holds 1 internal"):
        read(root)
    with pytest.raises(InternalSnapshot, match=r"root.qcow2 holds 1 internal"):
        read(create(pool / "top.qcow2", str(root)))


@pytest.mark.case("S11")
def test_a_chain_at_the_limit_is_refused_and_one_below_it_is_not(pool: Path) -> None:
    top = chain_of(pool, 4)
    assert len(read(top, depth=5)) == 4
    with pytest.raises(ChainTooDeep, match="chain is 4 files deep, the limit is 4"):
        read(top, depth=4)
    assert len(read(top, depth=images.ANY_DEPTH)) == 4


@pytest.mark.case("S11")
def test_a_data_file_is_refused(pool: Path) -> None:
    top = create(pool / "top.qcow2", None, "", "-o", f"data_file={pool}/data")
    with pytest.raises(ImageRefused, match="external data file"):
        read(top)
    clear = bytearray(top.read_bytes())
    struct.pack_into(">Q", clear, 72, 0)  # the name without the feature bit
    top.write_bytes(clear)
    with pytest.raises(ImageRefused, match="external data file"):
        read(top)


@pytest.mark.case("S11")
def test_a_loop_is_refused(pool: Path) -> None:
    create(pool / "a.qcow2", str(pool / "b.qcow2"))
    create(pool / "b.qcow2", str(pool / "a.qcow2"))
    with pytest.raises(ImageRefused, match="comes back"):
        read(pool / "a.qcow2")
    os.link(pool / "a.qcow2", pool / "c.qcow2")  # another name of the same file is the same file
    create(pool / "b.qcow2", str(pool / "c.qcow2"))
    with pytest.raises(ImageRefused, match="comes back"):
        read(pool / "a.qcow2")


@pytest.mark.case("S11")
@pytest.mark.parametrize("name", ["a.qcow2", "./a.qcow2", "in/../a.qcow2", "in/link", "link/a.qcow2"])
def test_a_loop_through_relative_names_and_links_is_refused(pool: Path, name: str) -> None:
    (pool / "in").mkdir()
    (pool / "in" / "link").symlink_to("../a.qcow2")
    (pool / "link").symlink_to(pool)
    create(pool / "a.qcow2", name)
    with pytest.raises(ImageRefused, match="comes back"):
        read(pool / "a.qcow2")


@pytest.mark.case("S11")
def test_a_backing_file_without_a_format_is_never_probed(pool: Path) -> None:
    top = create(pool / "top.qcow2", str(create(pool / "root.qcow2")))
    subprocess.run(["qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", top], check=True)
    data = top.read_bytes().replace(struct.pack(">II5s", 0xE2792ACA, 5, b"qcow2"), struct.pack(">II5s", 1, 5, b"qcow2"))
    top.write_bytes(data)
    with pytest.raises(ImageRefused, match=r"does not record the format.*qemu-img rebase -u -F FORMAT -b"):
        read(top)


@pytest.mark.case("S11")
@pytest.mark.parametrize("backing_format", ["vmdk", "host_device", "qcow", "nbd"])
def test_other_backing_formats_are_refused(pool: Path, backing_format: str) -> None:
    top = create(pool / "top.qcow2", str(create(pool / "root.qcow2")), backing_format)
    with pytest.raises(ImageRefused, match=f"has the format '{backing_format}'"):
        read(top)


@pytest.mark.case("S11")
@pytest.mark.parametrize(("bit", "reason"), [(1, "marked corrupt"), (2, "external data file"), (9, "not known here")])
def test_feature_bits_that_forbid_use_are_refused(pool: Path, bit: int, reason: str) -> None:
    top = create(pool / "top.qcow2")
    data = bytearray(top.read_bytes())
    struct.pack_into(">Q", data, 72, 1 << bit)
    top.write_bytes(data)
    with pytest.raises(ImageRefused, match=reason):
        read(top)


def test_an_image_that_was_not_closed_cleanly_can_be_frozen(pool: Path) -> None:
    top = create(pool / "top.qcow2", None, "", "-o", "lazy_refcounts=on")
    data = bytearray(top.read_bytes())
    struct.pack_into(">Q", data, 72, 1)
    top.write_bytes(data)
    assert len(read(top)) == 1


@pytest.mark.case("S11")
def test_an_encrypted_image_is_refused(pool: Path) -> None:
    top = create(pool / "top.qcow2")
    with top.open("r+b") as file:
        file.seek(32)  # crypt_method: 2 is LUKS; qemu-img itself would time the processor to make one
        file.write((2).to_bytes(4, "big"))
    with pytest.raises(ImageRefused, match="encrypted"):
        read(top)


@pytest.mark.case("S11")
@pytest.mark.parametrize("kind", ["directory", "pipe", "socket", "device", "sparse", "raw"])
def test_what_is_not_a_qcow2_file_is_refused_without_blocking(pool: Path, kind: str) -> None:
    top = pool / "top"
    if kind == "directory":
        top.mkdir()
    elif kind == "pipe":
        os.mkfifo(top)
    elif kind == "socket":
        os.mknod(top, stat.S_IFSOCK | 0o600)
    elif kind == "device":
        os.mknod(top, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    elif kind == "sparse":
        top.touch()
        os.truncate(top, 8 << 40)
    else:
        top.write_bytes(bytes(4096))
    with pytest.raises(ImageRefused, match=r"cannot be opened|not a qcow2"):
        read(top)


def test_only_a_declared_qcow2_is_read(pool: Path) -> None:
    with pytest.raises(ImageRefused, match="declared format is raw"):
        images.read_chain("vda", create(pool / "top.qcow2"), "raw", [pool], 10)


@pytest.mark.parametrize("virtual", [0, 512, 1 << 30, 100 << 30, 5 << 40])
def test_an_empty_overlay_takes_no_more_than_foreseen(tmp_path: Path, virtual: int) -> None:
    path = tmp_path / "o"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/b", "-F", "raw", path, str(virtual)], check=True
    )
    assert path.stat().st_size <= images.overlay_bytes(virtual) <= path.stat().st_size + (128 << 10)
