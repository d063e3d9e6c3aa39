"""What a libvirt domain XML says of disks, NVRAM and TPM, and the one change that Coldframe makes to it. Pure.

The format is libvirt's (https://libvirt.org/formatdomain.html). XML is parsed without entities, DTDs or network
access, and ``replace_sources`` touches nothing but the sources of the disks that it is told of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID

from lxml import etree

from agent.errors import DiskMoved, DomainUnreadable
from agent.wire.host_file import HostFileType
from agent.wire.vm import Firmware

TpmVersion = Literal["2.0", "1.2"]

#: Attributes of ``<source>`` that name a file or device, by the disk's ``type``.
_PATH_ATTRIBUTES = {"file": "file", "block": "dev", "dir": "dir", "vhostuser": "path", "vhostvdpa": "dev"}
_DEVICE_REASONS = {"cdrom": "cd-rom", "floppy": "floppy", "lun": "lun"}
_TYPE_REASONS = {
    "block": "block device",
    "network": "network",
    "dir": "directory",
    "volume": "storage volume",
    "nvme": "nvme",
    "vhostuser": "vhost-user",
    "vhostvdpa": "vhost-vdpa",
}


@dataclass(frozen=True, kw_only=True)
class DiskSource:
    """One ``<disk>``. ``format`` is the declared one: libvirt takes a disk without one as raw, and so do we.

    ``excluded_because`` is why a snapshot cannot cover the disk, one of: ``no medium``, ``cd-rom``, ``floppy``,
    ``lun``, ``block device``, ``network``, ``directory``, ``storage volume``, ``nvme``, ``vhost-user``,
    ``vhost-vdpa``, ``raw``, ``format <name>``, ``read-only``, ``shareable``, ``snapshot='no'``,
    ``snapshot='manual'``, ``transient``, ``encrypted``, ``slice``, ``data file``, ``file descriptor``; None where
    it can. Where several hold, the first of that order is given.
    """

    target: str
    path: Path | None
    format: str | None
    device: str
    source_type: str
    readonly: bool
    shareable: bool
    snapshot_no: bool
    transient: bool
    has_source: bool
    excluded_because: str | None
    backing_store_in_xml: bool

    @property
    def needs_exclusion(self) -> bool:
        """Whether a snapshot is refused unless its caller excludes this disk by name.

        An empty drive holds nothing that could be lost, so it is left out and listed without being asked for.
        """
        return self.excluded_because is not None and self.has_source


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What one domain XML says.

    ``nvram`` is the file that libvirt will use, computed where ``nvram_default`` (the XML names none, so the path
    follows the domain's name). ``nvram_refusal`` and ``tpm_refusal`` say why a variable store or a TPM that the
    domain does have is out of reach; then ``nvram`` and ``tpm_directory`` are None. ``tpm_directory`` holds
    ``tpm2/`` or ``tpm1.2/``. ``loader`` and ``template`` are absent from a firmware='efi' domain that is shut off
    under libvirt 9.0.
    """

    uuid: UUID
    name: str
    disks: tuple[DiskSource, ...]
    firmware: Firmware
    loader: Path | None
    template: Path | None
    nvram: Path | None
    nvram_default: bool
    nvram_format: str
    nvram_refusal: str | None
    tpm: TpmVersion | None
    tpm_directory: Path | None
    tpm_secret: UUID | None
    tpm_refusal: str | None
    persistent_tpm: bool

    @property
    def host_file_types(self) -> list[HostFileType]:
        """The host files that this domain must have, those out of reach included, so that none is missed in silence."""
        types: list[HostFileType] = []
        if self.nvram is not None or self.nvram_refusal is not None:
            types.append("nvram")
        if self.tpm_directory is not None or self.tpm_refusal is not None:
            types.append("tpm")
        return types

    def disk(self, target: str) -> DiskSource | None:
        """Return the disk of this target name, for example ``vda``."""
        return next((disk for disk in self.disks if disk.target == target), None)


@dataclass(frozen=True, kw_only=True)
class _Nvram:
    path: Path | None = None
    default: bool = False
    format: str = "raw"
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Tpm:
    version: TpmVersion | None = None
    directory: Path | None = None
    secret: UUID | None = None
    refusal: str | None = None
    persistent: bool = False


def parse(xml: str, nvram_dir: Path, swtpm_dir: Path) -> Domain:
    """Read a domain XML, inactive or live.

    ``nvram_dir`` and ``swtpm_dir`` are where libvirt puts what the XML does not place. Raises DomainUnreadable.
    """
    root = root_of(xml)
    name, uuid = _name(root), _uuid(root)
    firmware, loader = _firmware(root), root.find("os/loader")
    nvram = _nvram(root, firmware, nvram_dir, name)
    tpm = _tpm(root, swtpm_dir / str(uuid))
    nvram_element = root.find("os/nvram")
    return Domain(
        uuid=uuid,
        name=name,
        disks=tuple(_disk(element, name) for element in root.iterfind("devices/disk")),
        firmware=firmware,
        loader=_path(loader.text) if loader is not None else None,
        template=_path(nvram_element.get("template")) if nvram_element is not None else None,
        nvram=nvram.path,
        nvram_default=nvram.default,
        nvram_format=nvram.format,
        nvram_refusal=nvram.refusal,
        tpm=tpm.version,
        tpm_directory=tpm.directory,
        tpm_secret=tpm.secret,
        tpm_refusal=tpm.refusal,
        persistent_tpm=tpm.persistent,
    )


def emulator_of(xml: str) -> Path | None:
    """Return the QEMU that a definition names, if it names one. Raises DomainUnreadable."""
    text = (root_of(xml).findtext("devices/emulator") or "").strip()
    return Path(text) if text else None


def replace_sources(xml: str, sources: Mapping[str, tuple[Path, Path]]) -> str:
    """Point the disks at other files: ``{target: (present file, new file)}``. All or none.

    Drops the ``<backingStore>`` of those disks, which describes the old file, so that libvirt reads the chain from
    the new one. Everything else is kept: comments, metadata, foreign namespaces. Raises DiskMoved when a disk does
    not stand on its present file as qcow2 (an administrator changed it since), DomainUnreadable.
    """
    root = root_of(xml)
    name = _name(root)
    elements = {_target(element, name): element for element in root.iterfind("devices/disk")}
    for target, (old, _) in sources.items():
        found = _standing_on(elements.get(target), name)
        if found != str(old):
            raise DiskMoved(target=target, name=name, found=found, expected=str(old))
    for target, (_, new) in sources.items():
        _set_source(elements[target], new)
    return etree.tostring(root.getroottree(), encoding="unicode")


def _set_source(disk: etree._Element, new: Path) -> None:
    source = disk.find("source")
    if source is not None:
        source.set("file", str(new))
    for stale in disk.findall("backingStore"):
        disk.remove(stale)


def _standing_on(element: etree._Element | None, name: str) -> str:
    """Say what a disk stands on: the path alone when it is a qcow2 file, else words that no path equals."""
    if element is None:
        return "nothing"
    disk = _disk(element, name)
    if disk.path is None:
        return f"a source of type {disk.source_type}" if disk.has_source else "nothing"
    if disk.source_type != "file" or disk.format != "qcow2":
        return f"{disk.path} ({disk.source_type}, {disk.format or 'raw'})"
    return str(disk.path)


def root_of(xml: str) -> etree._Element:
    """Parse a domain XML and nothing that it could draw in. Raises DomainUnreadable."""
    # The text is already decoded, so an encoding that its declaration names no longer holds.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, encoding="utf-8")
    try:
        root = etree.fromstring(xml.encode(), parser)
    except (etree.XMLSyntaxError, UnicodeEncodeError) as err:
        raise DomainUnreadable(name="?", reason="its XML is not well-formed") from err
    if root.tag != "domain":
        raise DomainUnreadable(name="?", reason="its XML is not that of a domain")
    if root.getroottree().docinfo.doctype:
        raise DomainUnreadable(name="?", reason="its XML declares a document type")
    return root


def _name(root: etree._Element) -> str:
    name = root.findtext("name") or ""
    if not name or "/" in name:  # libvirt refuses both; a default NVRAM path must not be led elsewhere
        raise DomainUnreadable(name=name or "?", reason="its XML has no usable name")
    return name


def _uuid(root: etree._Element) -> UUID:
    try:
        return UUID((root.findtext("uuid") or "").strip())
    except ValueError as err:
        raise DomainUnreadable(name=_name(root), reason="its XML has no usable UUID") from err


def _path(text: str | None) -> Path | None:
    return Path(text) if text and text.strip() else None


def _target(disk: etree._Element, name: str) -> str:
    target = disk.find("target")
    dev = target.get("dev") if target is not None else None
    if not dev:
        raise DomainUnreadable(name=name, reason="a disk has no target name")
    return dev


def _disk(disk: etree._Element, name: str) -> DiskSource:
    source, driver = disk.find("source"), disk.find("driver")
    source_type = disk.get("type", "file")
    attribute = _PATH_ATTRIBUTES.get(source_type)
    has_source = source is not None and (attribute is None or bool(source.get(attribute)))
    image_format = driver.get("type") if driver is not None else None
    return DiskSource(
        target=_target(disk, name),
        path=_path(source.get(attribute)) if source is not None and attribute else None,
        format=image_format,
        device=disk.get("device", "disk"),
        source_type=source_type,
        readonly=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
        snapshot_no=disk.get("snapshot") == "no",
        transient=disk.find("transient") is not None,
        has_source=has_source,
        excluded_because=_excluded_because(disk, image_format) if has_source else "no medium",
        backing_store_in_xml=disk.find("backingStore") is not None,
    )


def _excluded_because(disk: etree._Element, image_format: str | None) -> str | None:
    device, source_type = disk.get("device", "disk"), disk.get("type", "file")
    if device != "disk":
        return _DEVICE_REASONS.get(device, device)
    if source_type != "file":
        return _TYPE_REASONS.get(source_type, source_type)
    if image_format != "qcow2":
        return "raw" if image_format in {None, "raw"} else f"format {image_format}"
    snapshot = disk.get("snapshot")
    reasons = {
        "read-only": disk.find("readonly") is not None,
        "shareable": disk.find("shareable") is not None,
        # Whoever wrote `manual` takes this disk's snapshots in some other way (libvirt 9.1 and later).
        f"snapshot='{snapshot}'": snapshot in {"no", "manual"},
        "transient": disk.find("transient") is not None,
        # The rest describe the top file itself; an overlay in its place would not be what they say.
        "encrypted": disk.find("encryption") is not None or disk.find("source/encryption") is not None,
        "slice": disk.find("source/slices") is not None,
        "data file": disk.find("source/dataStore") is not None,
        "file descriptor": disk.find("source[@fdgroup]") is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _firmware(root: etree._Element) -> Firmware:
    declared = root.find("os[@firmware='efi']") is not None
    return "uefi" if declared or root.find("os/loader[@type='pflash']") is not None else "bios"


def _nvram(root: etree._Element, firmware: Firmware, nvram_dir: Path, name: str) -> _Nvram:
    loader, element = root.find("os/loader"), root.find("os/nvram")
    if firmware == "bios" or (loader is not None and loader.get("stateless") == "yes"):
        return _Nvram()
    image_format = element.get("format", "raw") if element is not None else "raw"
    if element is not None:
        source_type, source = element.get("type", "file"), element.find("source")
        if source_type != "file":
            return _Nvram(format=image_format, refusal=f"its source is of type {source_type}, not a file")
        explicit = _path(source.get("file") if source is not None else element.text)
        if explicit is not None:
            return _Nvram(path=explicit, format=image_format)
    elif loader is not None and loader.get("type") == "rom":
        return _Nvram()  # firmware='efi' resolved to an image that keeps no variables
    elif loader is not None and loader.get("readonly") == "no":
        return _Nvram(refusal="its loader is writable and holds the variables itself")
    # libvirt's own rule; the extension follows the format since 9.2.
    extension = "qcow2" if image_format == "qcow2" else "fd"
    return _Nvram(path=nvram_dir / f"{name}_VARS.{extension}", default=True, format=image_format)


def _tpm(root: etree._Element, directory: Path) -> _Tpm:
    backend = root.find("devices/tpm/backend")
    if backend is None:
        return _Tpm()
    kind = backend.get("type")
    if kind != "emulator":
        return _Tpm(refusal=f"its backend is {kind}, whose state libvirt does not keep")
    version: TpmVersion = "1.2" if backend.get("version") == "1.2" else "2.0"
    persistent = backend.get("persistent_state") == "yes"
    secret = _secret(backend.find("encryption"))
    source = backend.find("source")
    if source is not None:  # libvirt 10.10 and later
        place = f"a {source.get('type')} of its own, {source.get('path')}"
        refusal = f"its state is kept in {place}, and only libvirt's own place is supported"
        return _Tpm(version=version, secret=secret, persistent=persistent, refusal=refusal)
    return _Tpm(version=version, directory=directory, secret=secret, persistent=persistent)


def _secret(encryption: etree._Element | None) -> UUID | None:
    try:
        return UUID(encryption.get("secret", "")) if encryption is not None else None
    except ValueError:
        return None  # libvirt refuses a secret that is no UUID, so there is none to name
