"""A VM's host files as they are now, against the newest copy that is held. Pure. Nothing here is wrong by itself."""

from collections.abc import Mapping
from uuid import UUID

from agent.wire.finding import Finding
from agent.wire.host_file import HostFiles, HostFileType
from controller.store.host_files import Kept


def judge(vm: UUID, name: str, host: str, now: HostFiles, kept: Mapping[HostFileType, Kept]) -> list[Finding]:
    """Return host files that cannot be used (a warning), and those that differ from the copy (for information).

    Of a type that was never saved a missing file is no finding: a VM that never started has none yet.
    """
    saved = {kind for kind, copy in kept.items() if copy.sha256 is not None}
    found = [
        Finding(
            code="host-file-unusable",
            severity="warning",
            what=f"the {one.type} of VM {name} cannot be used: {one.reason}",
            repair="Revert to a snapshot that holds it, or accept a blank one: coldframe-agent accept-blank",
            host=host,
            vm=vm,
            path=one.path,
        )
        for one in now.missing
        if one.type in saved
    ]
    for file in now.items:
        held = kept.get(file.type)
        if held is None or held.sha256 != file.sha256:
            than = "of which no copy is held" if held is None else "differs from the newest copy that is held"
            found.append(
                Finding(
                    code="host-file-drift",
                    severity="info",
                    what=f"the {file.type} of VM {name} {than}",
                    repair=f"Take a copy: coldframe vm sync {name}",
                    host=host,
                    vm=vm,
                    path=file.path,
                )
            )
    return found
