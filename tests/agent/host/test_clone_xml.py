"""What a clone's XML keeps of its source's, and what is its own."""

from pathlib import Path
from uuid import UUID

import pytest
from lxml import etree

from agent.errors import DiskDetached, DomainNameRefused, DomainUnreadable
from agent.host.clone_xml import Identity, check_name, cloned, mac_addresses

OLD = "6e0f1c1e-6d9e-4b8e-9f57-1b9b4c3f8a11"
NEW = UUID("a1d5a6cf-2f2c-4a53-9e4f-6d4b0f0e7c21")
GENID = UUID(int=7)
XML = f"""<domain type='kvm' id='4'>
  <name>win11</name><uuid>{OLD}</uuid>
  <genid>00000000-0000-0000-0000-000000000001</genid>
  <title>kept</title>
  <metadata><my:thing xmlns:my='urn:my'>kept too</my:thing></metadata>
  <sysinfo type='smbios'><system>
    <entry name='uuid'>{OLD.upper()}</entry><entry name='serial'>S-{OLD}</entry><entry name='family'>kept</entry>
  </system></sysinfo>
  <os><nvram template='/t'>/nvram/win11_VARS.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'><driver type='qcow2'/><source file='/i/a.qcow2' index='1'/>
      <backingStore type='file'><source file='/i/old'/></backingStore><target dev='vda'/></disk>
    <disk type='file' device='cdrom'><source file='/iso/x.iso'/><target dev='sda'/><readonly/></disk>
    <disk type='file' device='floppy'><source file='/i/floppy'/><target dev='fda'/></disk>
    <disk type='block' device='disk'><source dev='/dev/sdz'/><target dev='vdb'/></disk>
    <disk type='file' device='disk'><source file='/i/ro.raw'/><target dev='vdc'/><readonly/></disk>
    <disk type='file' device='disk'><source file='/i/s.raw'/><target dev='vdd'/><shareable/></disk>
    <interface type='bridge'><mac address='52:54:00:AA:00:01'/><virtualport type='openvswitch'>
      <parameters interfaceid='{OLD}'/></virtualport></interface>
    <interface type='bridge'><mac address='52:54:00:aa:00:02'/></interface>
    <serial type='unix'><source mode='bind' path='/run/con-{OLD}'/><log file='/var/log/con.log'/></serial>
    <serial type='unix'><source mode='connect' path='/run/server'/></serial>
    <serial type='file'><source path='/var/log/out'/></serial>
    <channel type='unix'><source mode='bind' path='/var/lib/x.agent'/><target type='virtio' name='q'/></channel>
    <graphics type='vnc' port='5901' autoport='no' websocket='5701' socket='/run/vnc'/>
    <graphics type='spice' autoport='yes'/>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'><source type='dir' path='/t'/></backend></tpm>
    <vsock><cid auto='no' address='3'/></vsock>
  </devices>
</domain>"""


def identity(**changes: object) -> Identity:
    values: dict[str, object] = {
        "uuid": NEW,
        "name": "copy & paste",
        "genid": GENID,
        "nvram": Path("/nvram/own.fd"),
        "disks": {"vda": Path("/i/new.qcow2")},
        **changes,
    }
    return Identity(**values)  # type: ignore[arg-type]  # a factory with overrides


def made(xml: str = XML, **changes: object) -> etree._Element:
    return etree.fromstring(cloned(xml, identity(**changes))[0])


def one(root: etree._Element, path: str) -> etree._Element:
    found = root.find(path)
    assert found is not None, path
    return found


def macs(**changes: object) -> list[str]:
    return [mac.get("address", "") for mac in made(XML, **changes).iterfind("devices/interface/mac")]


@pytest.mark.case("C1")
def test_name_uuid_generation_id_and_nvram_are_the_clones_own() -> None:
    root = made()
    assert root.findtext("name") == "copy & paste"
    assert root.findtext("uuid") == str(NEW)
    assert root.findtext("genid") == str(GENID)
    assert root.findtext("os/nvram") == "/nvram/own.fd"
    assert root.get("id") is None
    entries = [entry.text for entry in root.iterfind("sysinfo/system/entry")]
    assert entries == [str(NEW), f"s-{NEW}", "kept"]
    assert OLD not in etree.tostring(root, encoding="unicode").lower()


def test_what_is_nobodys_business_is_kept() -> None:
    root = made()
    assert root.findtext("title") == "kept"
    assert root.findtext("metadata/{urn:my}thing") == "kept too"
    assert root.find("os/nvram[@template='/t']") is not None
    assert root.find("devices/serial/source[@path='/run/server']") is not None


def test_without_generation_id_or_nvram_path_there_is_none_afterwards() -> None:
    xml = XML.replace("<genid>00000000-0000-0000-0000-000000000001</genid>", "")
    root = made(xml.replace("<nvram template='/t'>/nvram/win11_VARS.fd</nvram>", ""))
    assert root.find("genid") is None
    assert root.find("os/nvram") is None


def test_disks_are_the_clones_and_what_two_could_write_to_is_dropped_and_named() -> None:
    xml, dropped = cloned(XML, identity())
    root = etree.fromstring(xml)
    disks = {one(disk, "target").get("dev"): disk for disk in root.iterfind("devices/disk")}
    assert dropped == ["vdb", "vdd"]
    assert set(disks) == {"vda", "sda", "fda", "vdc"}
    assert dict(one(disks["vda"], "source").attrib) == {"file": "/i/new.qcow2"}
    assert disks["vda"].find("backingStore") is None
    assert one(disks["sda"], "source").get("startupPolicy") == "optional"
    assert disks["fda"].find("source") is None


def test_disk_of_the_snapshot_that_the_definition_lacks_is_refused() -> None:
    with pytest.raises(DiskDetached, match="vdz"):
        cloned(XML, identity(disks={"vdz": Path("/i/z")}))


@pytest.mark.case("C1")
def test_network_addresses_are_new_distinct_and_the_same_at_each_try() -> None:
    first = macs()
    assert first == macs()
    assert all(mac.startswith("52:54:00:") for mac in first)
    assert not {*first} & mac_addresses(XML)
    assert one(made(), "devices/interface/virtualport/parameters").get("interfaceid") is None
    again = macs(taken_macs={first[0].upper()})
    assert again[0] == first[1]
    assert len({*again, first[0]}) == 3


def test_sockets_files_and_ports_do_not_collide_with_the_sources() -> None:
    root = made()
    paths = [source.get("path") for source in root.iterfind("devices/serial/source")]
    assert paths == [f"/run/con-{NEW}", "/run/server", f"/var/log/out-{NEW}"]
    assert one(root, "devices/serial/log").get("file") == f"/var/log/con.log-{NEW}"
    assert root.find("devices/channel/source") is None
    vnc, spice = root.findall("devices/graphics")
    assert dict(vnc.attrib) == {"type": "vnc", "autoport": "yes", "websocket": "-1"}
    assert dict(spice.attrib) == {"type": "spice", "autoport": "yes"}
    assert root.find("devices/tpm/backend/source") is None
    assert dict(one(root, "devices/vsock/cid").attrib) == {"auto": "yes"}


def test_nvdimm_is_refused_since_its_file_would_be_shared() -> None:
    memory = "<memory model='nvdimm'><source><path>/f</path></source></memory></devices>"
    with pytest.raises(DomainUnreadable, match="NVDIMM"):
        cloned(XML.replace("</devices>", memory), identity())


@pytest.mark.parametrize("name", ["win11", "Größe", "a b", "a.b-c_d", "x" * 200])
def test_usual_names_are_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "..", "a/b", "--help", "tab\t", "7", OLD, "x" * 201])
def test_names_that_something_would_misread_are_refused(name: str) -> None:
    with pytest.raises(DomainNameRefused):
        check_name(name)
