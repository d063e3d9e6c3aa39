"""One factory per record, with overrides. All are functions for ``db.run``, except those that make plain values."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec

from agent.wire.host_file import FORMATS, HostFileType
from agent.wire.snapshot import Snapshot
from agent.wire.transaction import FrozenFile
from agent.wire.vm import HostVm
from controller.db import write
from controller.models import Host
from controller.store import groups, hosts, vms
from controller.store.contents import Held, pack

HOST = "kvm1"
T0 = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """Return a moment so long after T0."""
    return T0 + timedelta(seconds=seconds)


def host_vm(**changes: Any) -> HostVm:
    """Return a UEFI and TPM VM as a host shows it, with a UUID of its own."""
    return msgspec.structs.replace(HostVm.example(), **{"uuid": uuid4(), **changes})


def add_host(name: str = HOST) -> str:
    """Enrol a host."""
    if Host.get_or_none(Host.name == name) is None:
        hosts.add(name, f"http://{name}:7701", f"secret-of-{name}")
    return name


def add_vm(host: str = HOST, **changes: Any) -> UUID:
    """Record a VM on a host, which is enrolled where it is not."""
    with write():
        vm = host_vm(**changes)
        vms.record_one(add_host(host), vm, T0)
    return vm.uuid


def held(type: HostFileType, data: bytes | str) -> Held:
    """Return bytes, or a hash, as the store takes them."""
    return (data if isinstance(data, str) else pack(data)), FORMATS[type]


def both(mark: bytes = b"") -> dict[HostFileType, Held]:
    """Return an NVRAM and a TPM state that differ by ``mark``."""
    return {"nvram": held("nvram", b"nvram" + mark), "tpm": held("tpm", b"tpm" + mark)}


def frozen(target: str = "vda", **changes: Any) -> FrozenFile:
    """Return one disk's frozen file."""
    return msgspec.structs.replace(
        FrozenFile.example(), **{"target": target, "path": f"/images/{target}.qcow2", **changes}
    )


def new_group(vm: UUID, **changes: Any) -> groups.NewGroup:
    """Return a complete snapshot with one disk and both host files."""
    values: dict[str, Any] = {
        "uuid": uuid4(),
        "vm": vm,
        "host": HOST,
        "name": "before-update",
        "transaction": uuid4(),
        "volumes": [frozen()],
        "host_files_state": "complete",
        "host_files": both(),
        "expected": ["nvram", "tpm"],
    }
    return groups.NewGroup(**values | changes)


def add_snapshot(vm: UUID, *, current: bool = True, **changes: Any) -> Snapshot:
    """Record a snapshot that is ready."""
    with write():
        made = groups.create(new_group(vm, **changes))
        return groups.ready(made.uuid, current=current)
