"""A domain's host files as they lie on this host: found by its definition, read whole and checked. Blocking."""

import hashlib
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from agent.errors import HostFileNotFound, HostFileUnsupported, StorageFailed
from agent.host import files, nvram, tpm
from agent.host.domain_xml import Domain
from agent.host.tpm_lock import LOCK_NAME
from agent.web.errors import Error
from agent.wire.host_file import FORMATS, HostFile, HostFiles, HostFileType, MissingHostFile


def read(domain: Domain, type_: HostFileType, limit_bytes: int) -> tuple[HostFile, bytes]:
    """Return one host file and its bytes as they travel (agent.wire.host_file.FORMATS).

    Raises HostFileNotFound where the domain's definition gives it none, HostFileUnsupported where it is out of
    reach, HostFileMissing, HostFileDamaged, HostFileTooLarge, StorageFailed.
    """
    if type_ not in domain.host_file_types:
        raise HostFileNotFound(name=domain.name, type=type_)
    path = path_of(domain, type_)
    if path is None:
        raise HostFileUnsupported(name=domain.name, type=type_, reason=_refusal(domain, type_))
    reader = nvram.read if type_ == "nvram" else tpm.pack
    data = reader(files.settled(path), domain.name, limit_bytes)
    facts = HostFile(
        type=type_,
        path=str(path),
        format=FORMATS[type_],
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        mtime=_changed_at(path),
    )
    return facts, data


def look(domain: Domain, limit_bytes: int) -> HostFiles:
    """Return all of a domain's host files; each that it should have is either sound or missing with a reason."""
    items: list[HostFile] = []
    missing: list[MissingHostFile] = []
    for type_ in domain.host_file_types:
        try:
            items.append(read(domain, type_, limit_bytes)[0])
        except Error as err:
            path, reason = path_of(domain, type_), str(err.facts.get("reason", err))
            missing.append(MissingHostFile(type=type_, path=str(path or ""), code=err.code, reason=reason))
    return HostFiles(items=items, expected=domain.host_file_types, missing=missing)


def settled(domain: Domain) -> Domain:
    """Return a domain whose host files have the names to work with; see ``agent.host.paths``. Raises StorageFailed."""
    return replace(
        domain,
        nvram=files.settled(domain.nvram) if domain.nvram else None,
        tpm_directory=files.settled(domain.tpm_directory) if domain.tpm_directory else None,
    )


def path_of(domain: Domain, type_: HostFileType) -> Path | None:
    """Return where the host file lies: a file for NVRAM, for TPM the directory that holds ``tpm2/``."""
    return domain.nvram if type_ == "nvram" else domain.tpm_directory


def _refusal(domain: Domain, type_: HostFileType) -> str:
    return (domain.nvram_refusal if type_ == "nvram" else domain.tpm_refusal) or "it is out of reach"


def _changed_at(path: Path) -> datetime:
    """Return the last change of a file, or of anything in a directory but swtpm's lock, which each look touches."""
    try:
        found = [path, *path.glob("*/*")] if path.is_dir() else [path]
        return max(files.changed_at(one.stat(follow_symlinks=False)) for one in found if one.name != LOCK_NAME)
    except OSError as err:
        raise StorageFailed(action="reading", path=str(path), reason=err.strerror or str(err)) from err
