"""What a domain XML says, and that a switch of disks changes nothing else."""

from pathlib import Path
from uuid import UUID
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from agent.errors import DiskMoved, DomainUnreadable
from agent.host.domain_xml import DiskSource, Domain, parse, replace_sources

NVRAM_DIR, SWTPM_DIR = Path("/var/lib/libvirt/qemu/nvram"), Path("/var/lib/libvirt/swtpm")
VM = UUID("6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11")
SECRET = UUID("3b5cf0a6-6a08-4d1b-a3d6-4e1d0c5a5f10")
QCOW2 = (
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
    "<source file='/images/a.qcow2'/><target dev='vda' bus='virtio'/></disk>"
)
#: What libvirt accepts in a name: no slash, no control characters. XML forbids lone surrogates too.
NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/\ufffe\uffff"), min_size=1, max_size=40
).filter(lambda name: name.strip() != "")


def xml(devices: str = QCOW2, os: str = "<os><type>hvm</type></os>", name: str = "win11") -> str:
    head = f"<domain type='kvm'><name>{escape(name)}</name><uuid>{VM}</uuid>"
    return f"{head}{os}<devices>{devices}</devices></domain>"


def read(text: str) -> Domain:
    return parse(text, NVRAM_DIR, SWTPM_DIR)


def disk(element: str) -> DiskSource:
    (found,) = read(xml(element)).disks
    return found


def test_a_qcow2_file_is_covered() -> None:
    found = disk(QCOW2)

    assert (found.target, found.path, found.format) == ("vda", Path("/images/a.qcow2"), "qcow2")
    assert found.excluded_because is None
    assert not found.needs_exclusion


@pytest.mark.case("S10")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("type='qcow2'", "type='raw'"), "raw"),
        ((" type='qcow2'", ""), "raw"),
        (("<driver name='qemu' type='qcow2'/>", ""), "raw"),
        (("type='qcow2'", "type='vmdk'"), "format vmdk"),
        (("type='file'", "type='block'"), "block device"),
        (("type='file'", "type='network'"), "network"),
        (("type='file'", "type='volume'"), "storage volume"),
        (("type='file'", "type='nvme'"), "nvme"),
        (("type='file'", "type='vhostuser'"), "vhost-user"),
        (("type='file'", "type='vhostvdpa'"), "vhost-vdpa"),
        (("type='file'", "type='dir'"), "directory"),
        (("type='file'", "type='novelty'"), "novelty"),
        (("device='disk'", "device='cdrom'"), "cd-rom"),
        (("device='disk'", "device='floppy'"), "floppy"),
        (("device='disk'", "device='lun'"), "lun"),
        (("</disk>", "<readonly/></disk>"), "read-only"),
        (("</disk>", "<shareable/></disk>"), "shareable"),
        (("</disk>", "<transient/></disk>"), "transient"),
        (("<disk ", "<disk snapshot='no' "), "snapshot='no'"),
        (("<disk ", "<disk snapshot='manual' "), "snapshot='manual'"),
        (("</disk>", "<encryption format='luks'/></disk>"), "encrypted"),
        (("qcow2'/><target", "qcow2'><slices/></source><target"), "slice"),
        (("qcow2'/><target", "qcow2'><dataStore type='file'/></source><target"), "data file"),
        (("qcow2'/><target", "qcow2' fdgroup='x'/><target"), "file descriptor"),
    ],
)
def test_a_disk_that_cannot_be_covered_gives_its_reason(change: tuple[str, str], reason: str) -> None:
    text = QCOW2.replace(*change)
    if change[1] not in {"type='file'", "type='volume'"}:  # each type names its source in its own way
        text = text.replace(
            "<source file='/images/a.qcow2'", "<source file='/images/a.qcow2' dev='/d' dir='/d' path='/d'"
        )

    found = disk(text)

    assert found.excluded_because == reason
    assert found.needs_exclusion


def test_an_empty_drive_needs_no_exclusion() -> None:
    found = disk("<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>")

    assert (found.path, found.excluded_because, found.needs_exclusion) == (None, "no medium", False)


def test_a_block_device_shows_its_path() -> None:
    found = disk("<disk type='block' device='disk'><source dev='/dev/sdb'/><target dev='vdb'/></disk>")

    assert found.path == Path("/dev/sdb")


def test_a_bios_domain_without_tpm_has_no_host_files() -> None:
    domain = read(xml())

    assert (domain.firmware, domain.nvram, domain.tpm, domain.host_file_types) == ("bios", None, None, [])


@pytest.mark.parametrize(
    ("os", "nvram", "default"),
    [
        ("<os firmware='efi'><type>hvm</type></os>", NVRAM_DIR / "win11_VARS.fd", True),
        ("<os firmware='efi'><nvram template='/t.fd'/></os>", NVRAM_DIR / "win11_VARS.fd", True),
        ("<os firmware='efi'><nvram format='qcow2'/></os>", NVRAM_DIR / "win11_VARS.qcow2", True),
        ("<os firmware='efi'><nvram>/x/v.fd</nvram></os>", Path("/x/v.fd"), False),
        ("<os><loader readonly='yes' type='pflash'>/c.fd</loader><nvram>/x/v.fd</nvram></os>", Path("/x/v.fd"), False),
        ("<os><loader readonly='yes' type='pflash'>/c.fd</loader></os>", NVRAM_DIR / "win11_VARS.fd", True),
        ("<os firmware='efi'><nvram type='file'><source file='/x/v.fd'/></nvram></os>", Path("/x/v.fd"), False),
    ],
)
def test_the_nvram_path_is_the_one_libvirt_will_use(os: str, nvram: Path, default: bool) -> None:
    domain = read(xml(os=os))

    assert (domain.firmware, domain.nvram, domain.nvram_default) == ("uefi", nvram, default)
    assert domain.host_file_types == ["nvram"]


@pytest.mark.parametrize(
    ("os", "firmware"),
    [
        ("<os firmware='efi'><loader stateless='yes'/></os>", "uefi"),
        ("<os><loader type='pflash' readonly='yes' stateless='yes'>/c.fd</loader></os>", "uefi"),
        ("<os firmware='efi'><loader type='rom'>/c.fd</loader></os>", "uefi"),
        ("<os><loader type='rom'>/seabios.bin</loader></os>", "bios"),
        ("<os firmware='bios'/>", "bios"),
    ],
)
def test_firmware_without_variables_has_no_nvram(os: str, firmware: str) -> None:
    domain = read(xml(os=os))

    assert (domain.firmware, domain.nvram, domain.host_file_types) == (firmware, None, [])


@pytest.mark.case("B7")
@pytest.mark.parametrize(
    ("os", "reason"),
    [
        ("<os firmware='efi'><nvram type='network'><source protocol='iscsi'/></nvram></os>", "network"),
        ("<os firmware='efi'><nvram type='block'><source dev='/dev/vg/v'/></nvram></os>", "block"),
        ("<os><loader type='pflash' readonly='no'>/all.fd</loader></os>", "holds the variables itself"),
    ],
)
def test_nvram_out_of_reach_is_expected_with_a_reason(os: str, reason: str) -> None:
    domain = read(xml(os=os))

    assert domain.nvram is None
    assert reason in (domain.nvram_refusal or "")
    assert domain.host_file_types == ["nvram"]


def test_loader_and_template_are_read() -> None:
    os = "<os><loader type='pflash' readonly='yes'>/c.fd</loader><nvram template='/t.fd'>/v.fd</nvram></os>"

    domain = read(xml(os=os))

    assert (domain.loader, domain.template) == (Path("/c.fd"), Path("/t.fd"))


@pytest.mark.parametrize(("attributes", "version"), [("version='2.0'", "2.0"), ("version='1.2'", "1.2"), ("", "2.0")])
def test_an_emulated_tpm_is_found_in_libvirts_place(attributes: str, version: str) -> None:
    domain = read(xml(f"<tpm model='tpm-crb'><backend type='emulator' {attributes}/></tpm>"))

    assert (domain.tpm, domain.tpm_directory, domain.tpm_secret) == (version, SWTPM_DIR / str(VM), None)
    assert domain.host_file_types == ["tpm"]


def test_the_secret_of_an_encrypted_tpm_is_read() -> None:
    backend = f"<backend type='emulator' version='2.0' persistent_state='yes'><encryption secret='{SECRET}'/></backend>"

    domain = read(xml(f"<tpm model='tpm-crb'>{backend}</tpm>"))

    assert (domain.tpm_secret, domain.persistent_tpm) == (SECRET, True)


@pytest.mark.case("B7")
@pytest.mark.parametrize(
    ("backend", "version", "reason"),
    [
        ("<backend type='passthrough'><device path='/dev/tpm0'/></backend>", None, "passthrough"),
        ("<backend type='external'><source type='unix' path='/s'/></backend>", None, "external"),
        ("<backend type='emulator' version='2.0'><source type='file' path='/s'/></backend>", "2.0", "/s"),
        ("<backend type='emulator' version='2.0'><source type='dir' path='/d'/></backend>", "2.0", "/d"),
    ],
)
def test_a_tpm_out_of_reach_is_expected_with_a_reason(backend: str, version: str | None, reason: str) -> None:
    domain = read(xml(f"<tpm model='tpm-tis'>{backend}</tpm>"))

    assert (domain.tpm, domain.tpm_directory) == (version, None)
    assert reason in (domain.tpm_refusal or "")
    assert domain.host_file_types == ["tpm"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no xml",
        "<network/>",
        "<domain/>",
        f"<domain><uuid>{VM}</uuid></domain>",
        "<domain><name>a</name><uuid>not one</uuid></domain>",
        f"<domain><name>../a</name><uuid>{VM}</uuid></domain>",
        xml("<disk type='file'><source file='/a'/></disk>"),
        '<!DOCTYPE domain [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + xml(name="a").replace(">a<", ">&e;<"),
        "\ud800",
    ],
)
def test_xml_that_is_no_usable_domain_is_refused(text: str) -> None:
    with pytest.raises(DomainUnreadable):
        read(text)


@pytest.mark.case("X8")
@given(name=NAMES)
def test_any_name_gives_its_default_nvram(name: str) -> None:
    domain = read(xml(name=name, os="<os firmware='efi'/>"))

    assert domain.name == name
    assert domain.nvram == NVRAM_DIR / f"{name}_VARS.fd"


RICH = f"""<!-- above --><domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>w</name>
  <uuid>{VM}</uuid>
  <metadata><app:x xmlns:app="urn:app" app:y="'&quot;">&amp; é 🖥</app:x></metadata>
  <devices>
    <!-- the system disk -->
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='/images/a.qcow2' startupPolicy='mandatory'><seclabel model='dac' relabel='no'/></source>
      <backingStore type='file'><format type='qcow2'/><source file='/images/old.qcow2'/><backingStore/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/images/b.qcow2'/>
      <backingStore/>
      <target dev='vdb' bus='virtio'/>
    </disk>
  </devices>
  <qemu:commandline><qemu:arg value='-foo'/></qemu:commandline>
</domain>"""


def normal(text: str) -> bytes:
    """One spelling of the same XML, without the white space between elements."""
    parser = etree.XMLParser(remove_blank_text=True)
    return etree.tostring(etree.fromstring(text.encode(), parser).getroottree(), method="c14n")


def test_a_switch_changes_the_source_and_drops_the_stale_backing_store_only() -> None:
    a, new = Path("/images/a.qcow2"), Path("/images/a.cf-1.vda.qcow2")
    stale = RICH[RICH.index("<backingStore type") : RICH.index("</backingStore>") + len("</backingStore>")]

    switched = replace_sources(RICH, {"vda": (a, new)})

    assert normal(switched) == normal(RICH.replace(str(a), str(new)).replace(stale, ""))


def test_all_disks_switch_at_once() -> None:
    sources = {
        "vda": (Path("/images/a.qcow2"), Path("/images/1")),
        "vdb": (Path("/images/b.qcow2"), Path("/images/2")),
    }

    domain = read(replace_sources(RICH, sources))

    assert [str(disk.path) for disk in domain.disks] == ["/images/1", "/images/2"]
    assert not any(disk.backing_store_in_xml for disk in domain.disks)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (RICH.replace("/images/b.qcow2", "/images/moved.qcow2"), "/images/moved.qcow2"),
        (RICH.replace("'vdb'", "'vdc'"), "nothing"),
        (RICH.replace("<source file='/images/b.qcow2'/>", ""), "nothing"),
        (RICH.replace("type='qcow2'/>", "type='raw'/>"), "/images/b.qcow2 (file, raw)"),
        (RICH.replace("<source file='/images/b.qcow2'/>", "<source/>"), "nothing"),
    ],
)
def test_a_disk_that_moved_is_a_conflict_that_names_both_files(text: str, found: str) -> None:
    sources = {
        "vda": (Path("/images/a.qcow2"), Path("/images/1")),
        "vdb": (Path("/images/b.qcow2"), Path("/images/2")),
    }

    with pytest.raises(DiskMoved) as moved:
        replace_sources(text, sources)

    assert moved.value.facts == {"target": "vdb", "name": "w", "found": found, "expected": "/images/b.qcow2"}


@pytest.mark.case("X8")
@given(old=NAMES, new=NAMES)
def test_any_file_name_survives_a_switch(old: str, new: str) -> None:
    element = etree.Element("source", file=f"/images/{old}")
    text = xml(QCOW2.replace("<source file='/images/a.qcow2'/>", etree.tostring(element, encoding="unicode")))

    switched = replace_sources(text, {"vda": (Path("/images") / old, Path("/images") / new)})

    assert read(switched).disks[0].path == Path("/images") / new
    assert normal(replace_sources(switched, {"vda": (Path("/images") / new, Path("/images") / old)})) == normal(text)


@given(name=NAMES)
def test_switching_nothing_keeps_everything(name: str) -> None:
    text = RICH.replace("<name>w</name>", f"<name>{escape(name)}</name>")

    assert normal(replace_sources(text, {})) == normal(text)
