"""The domain XML of a clone: the snapshot's, with all that must be a machine's own made anew. Pure.

What the clone shares with its source on purpose stays: shared directories, shared memory, host devices (libvirt
lets only one of two VMs run with such a device), read-only media. What two machines would write to at once, or
both claim (disks that the snapshot does not cover, sockets, ports), is dropped or renamed.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from lxml import etree

from agent.errors import DiskDetached, DomainNameRefused, DomainUnreadable
from agent.host.domain_xml import root_of

#: The prefix that libvirt itself gives to QEMU's cards; its second bit says "locally administered".
_MAC_PREFIX = "52:54:00"
_CHARACTER_DEVICES = ("serial", "parallel", "console", "channel", "redirdev", "smartcard")
_MEDIA = {"cdrom", "floppy"}
#: Room for what is put around a name: ``<name>_VARS.fd``, ``<name>.cf-<transaction>.<target>.qcow2`` is cut by itself.
_NAME_LIMIT_BYTES = 200


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What is the clone's own. ``nvram`` replaces a path that the XML names; ``disks`` are its files by target.

    ``taken_macs`` are the addresses that domains of this host have, in lower case.
    """

    uuid: UUID
    name: str
    genid: UUID
    nvram: Path
    disks: Mapping[str, Path]
    taken_macs: Collection[str] = ()


def check_name(name: str) -> None:
    """Raise DomainNameRefused for a name that libvirt, a file name or a command line would not take as one."""
    reason = _name_damage(name)
    if reason is not None:
        raise DomainNameRefused(name=name, reason=reason)


def _name_damage(name: str) -> str | None:
    if not name or name != name.strip():
        return "it is empty, or begins or ends with white space"
    if "/" in name or not name.isprintable():
        return "it holds a slash or characters that cannot be shown"
    if name[0] in "-.":
        return f"it begins with {name[0]!r}"
    if len(name.encode("utf-8", "surrogatepass")) > _NAME_LIMIT_BYTES:
        return f"it has more than {_NAME_LIMIT_BYTES} bytes"
    if name.isdigit() or _is_uuid(name):
        return "virsh would take it for an ID or a UUID"
    return None


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def mac_addresses(xml: str) -> set[str]:
    """Return the addresses of a domain's network cards in lower case. Raises DomainUnreadable."""
    found = root_of(xml).iterfind("devices/interface/mac")
    return {mac.get("address", "").lower() for mac in found}


def cloned(xml: str, own: Identity) -> tuple[str, list[str]]:
    """Return the clone's XML, and the targets of the disks that it does not have.

    Raises DomainNameRefused, DiskDetached (a disk of the snapshot is not in its XML), DomainUnreadable.
    """
    check_name(own.name)
    root = root_of(xml)
    old_uuid, old_name = (root.findtext("uuid") or "").strip().lower(), root.findtext("name") or ""
    if root.find("devices/memory[@model='nvdimm']/source/path") is not None:
        raise DomainUnreadable(name=old_name, reason="it has an NVDIMM, whose file a clone would share")
    _drop(root, "id")
    _set_text(root, "name", own.name)
    _set_text(root, "uuid", str(own.uuid))
    _renew_genid(root, own.genid)
    _replace_uuid(root, old_uuid, own.uuid)
    _own_nvram(root, own.nvram)
    _own_tpm(root)
    dropped = _own_disks(root, own)
    _renew_macs(root, own)
    for device in _CHARACTER_DEVICES:
        for element in root.iterfind(f"devices/{device}"):
            _own_paths(element, old_uuid, own.uuid)
    for graphics in root.iterfind("devices/graphics"):
        _free_ports(graphics)
    for vsock in root.iterfind("devices/vsock/cid"):
        _drop(vsock, "address")
        vsock.set("auto", "yes")
    return etree.tostring(root.getroottree(), encoding="unicode"), dropped


def restored(xml: str, own: Identity) -> tuple[str, list[str]]:
    """Return the XML of a domain that is put back elsewhere with the identity that it has; and the disks it lacks.

    ``own.nvram`` replaces a path that the XML names, and a TPM state goes where libvirt itself would keep it: the XML
    comes from outside, and must not choose where files are written. Raises DomainUnreadable where it is another
    domain's, DomainNameRefused, DiskDetached.
    """
    check_name(own.name)
    root = root_of(xml)
    found = (root.findtext("uuid") or "").strip().lower(), root.findtext("name") or ""
    if found != (str(own.uuid), own.name):
        raise DomainUnreadable(name=own.name, reason=f"its XML is that of {found[1]!r} with the UUID {found[0]}")
    _drop(root, "id")
    _own_nvram(root, own.nvram)
    _own_tpm(root)
    dropped = _own_disks(root, own)
    return etree.tostring(root.getroottree(), encoding="unicode"), dropped


def _own_tpm(root: etree._Element) -> None:
    """A place of its own is the source's; libvirt's own place follows the UUID."""
    for place in list(root.iterfind("devices/tpm/backend/source")):
        _remove(place)


def _set_text(root: etree._Element, tag: str, text: str) -> None:
    element = root.find(tag)
    if element is None:
        element = etree.SubElement(root, tag)
    element.text = text


def _drop(element: etree._Element, attribute: str) -> None:
    if attribute in element.attrib:
        del element.attrib[attribute]


def _remove(element: etree._Element) -> None:
    parent = element.getparent()
    if parent is not None:
        parent.remove(element)


def _renew_genid(root: etree._Element, genid: UUID) -> None:
    """A guest that sees another generation id knows that it was cloned; one that had none gets none."""
    element = root.find("genid")
    if element is not None:
        element.text = str(genid)


def _replace_uuid(root: etree._Element, old: str, new: UUID) -> None:
    """SMBIOS tables that name the UUID: libvirt refuses a system entry that differs from the domain's."""
    for entry in root.iterfind("sysinfo//entry"):
        if old and old in (entry.text or "").lower():
            entry.text = (entry.text or "").lower().replace(old, str(new))
    for entry in root.iterfind("sysinfo/system/entry[@name='uuid']"):
        entry.text = str(new)


def _own_nvram(root: etree._Element, path: Path) -> None:
    """Give an explicit path another; where libvirt computes the path from the name, it already differs."""
    element = root.find("os/nvram")
    if element is None:
        return
    source = element.find("source")
    if source is not None and source.get("file"):
        source.set("file", str(path))
    elif (element.text or "").strip():
        element.text = str(path)


def _own_disks(root: etree._Element, own: Identity) -> list[str]:
    dropped: list[str] = []
    seen: set[str] = set()
    for disk in list(root.iterfind("devices/disk")):
        place = disk.find("target")
        target = place.get("dev", "") if place is not None else ""
        seen.add(target)
        if target in own.disks:
            _point(disk, own.disks[target])
        elif not _keep_other(disk):
            _remove(disk)
            dropped.append(target)
    for target in sorted(own.disks.keys() - seen):
        raise DiskDetached(target=target, name=own.name)
    return sorted(dropped)


def _point(disk: etree._Element, path: Path) -> None:
    for stale in (*disk.findall("backingStore"), *disk.findall("mirror")):
        disk.remove(stale)
    source = disk.find("source")
    if source is None:
        source = etree.SubElement(disk, "source")
    for attribute in set(source.attrib) - {"startupPolicy"}:
        del source.attrib[attribute]
    source.set("file", str(path))
    disk.set("type", "file")


def _keep_other(disk: etree._Element) -> bool:
    """Keep what a snapshot does not cover only where no two machines could write to it."""
    source = disk.find("source")
    if disk.get("device") not in _MEDIA:
        return disk.find("readonly") is not None and disk.find("shareable") is None
    if source is not None and disk.get("device") == "floppy":
        disk.remove(source)  # the drive stays, a disk that can be written does not
    elif source is not None and disk.get("type", "file") == "file":
        source.set("startupPolicy", "optional")  # an installation medium may be gone by now
    return True


def _renew_macs(root: etree._Element, own: Identity) -> None:
    taken = {mac.lower() for mac in own.taken_macs}
    fresh = _addresses(own.uuid)
    for interface in root.iterfind("devices/interface"):
        mac = interface.find("mac")
        if mac is None:
            mac = etree.SubElement(interface, "mac")
        address = next(one for one in fresh if one not in taken)
        taken.add(address)
        mac.set("address", address)
        for port in interface.iterfind("virtualport/parameters"):
            _drop(port, "interfaceid")


def _addresses(uuid: UUID) -> Iterator[str]:
    """Give addresses that follow from the UUID, without an end: the same clone has the same at each try."""
    number = 0
    while True:
        digest = hashlib.sha256(uuid.bytes + number.to_bytes(8, "big")).digest()
        yield f"{_MAC_PREFIX}:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}"
        number += 1


def _own_paths(device: etree._Element, old: str, new: UUID) -> None:
    """Rename the files and sockets that a character device makes; a guest agent's socket is left to libvirt."""
    source = device.find("source")
    if source is not None and source.get("mode") == "bind" and source.get("path"):
        if device.tag == "channel":
            device.remove(source)
        else:
            source.set("path", _renamed(source.get("path", ""), old, new))
    elif source is not None and device.get("type") == "file" and source.get("path"):
        source.set("path", _renamed(source.get("path", ""), old, new))
    log = device.find("log")
    if log is not None and log.get("file"):
        log.set("file", _renamed(log.get("file", ""), old, new))


def _renamed(path: str, old: str, new: UUID) -> str:
    return path.replace(old, str(new)) if old and old in path else f"{path}-{new}"


def _free_ports(graphics: etree._Element) -> None:
    """Leave port and socket to libvirt: fixed ones would keep the second of two machines from starting."""
    if graphics.get("port", "-1") != "-1" or graphics.get("tlsPort", "-1") != "-1":
        for port in ("port", "tlsPort"):
            _drop(graphics, port)
        graphics.set("autoport", "yes")
    if graphics.get("websocket", "-1") != "-1":
        graphics.set("websocket", "-1")
    _drop(graphics, "socket")
    for listen in graphics.iterfind("listen[@type='socket']"):
        _drop(listen, "socket")
