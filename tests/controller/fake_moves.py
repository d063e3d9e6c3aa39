"""A VM comes to a played host, from another one or an archive, or leaves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent.wire.transaction import (
    DepartRequest,
    ExportRequest,
    ImportRequest,
    PlaceRequest,
    RestoreRequest,
    Transaction,
)
from tests.controller import fake_archives
from tests.controller.fake_machine import FakeVm, Refusal, Running, digest, host_file

if TYPE_CHECKING:
    from tests.controller.fake_host import FakeHost


def prepare_apart(host: FakeHost, wanted: PlaceRequest | ImportRequest | ExportRequest, view: Transaction) -> Running:
    """Begin what is about no domain of this host."""
    return (
        prepare(host, wanted, view) if isinstance(wanted, PlaceRequest) else fake_archives.prepare(host, wanted, view)
    )


def prepare(host: FakeHost, wanted: PlaceRequest | DepartRequest | RestoreRequest, view: Transaction) -> Running:
    """Begin a move."""
    if isinstance(wanted, DepartRequest):
        vm = host.find_vm(wanted.vm)
        captured = {kind: data for kind, data in vm.host_files.items() if kind not in vm.broken}
        files = [host_file(kind, data) for kind, data in captured.items()]
        facts = {"host_files": files, "expected": vm.expected, "missing": host.missing(vm)}
        return Running(wanted, msgspec.structs.replace(view, **facts), captured)
    if isinstance(wanted, RestoreRequest):
        vm, new = host.find_vm(wanted.vm), {ref.type: ref.sha256 for ref in wanted.host_files}
        captured = {kind: data for kind, data in vm.host_files.items() if kind in new and digest(data) != new[kind]}
        files = [host_file(kind, data) for kind, data in captured.items()]
        return Running(wanted, msgspec.structs.replace(view, host_files=files), captured)
    if wanted.vm in host.vms:
        raise Refusal(409, "domain-exists", name=wanted.name)
    for volume in wanted.volumes:
        if volume.path not in host.files or volume.fingerprint not in {"", host.fingerprint(volume.path)}:
            raise Refusal(409, "frozen-file-altered", target=volume.target, path=volume.path)
    return Running(wanted, view)


def switch(host: FakeHost, running: Running) -> None:
    """Carry a move out on this host."""
    wanted = running.request
    if isinstance(wanted, ImportRequest):
        fake_archives.switch(host, running, wanted)
    elif isinstance(wanted, DepartRequest):
        vm = host.vms.pop(wanted.vm)
        vm.host_files = {kind: data for kind, data in vm.host_files.items() if kind in wanted.keep}
    elif isinstance(wanted, PlaceRequest):
        if waiting := {ref.type for ref in wanted.host_files} - set(running.uploaded):
            raise Refusal(409, "host-file-not-uploaded", types=sorted(waiting))
        host.vms[wanted.vm] = FakeVm(
            uuid=wanted.vm,
            name=wanted.name,
            tops={volume.target: volume.path for volume in wanted.volumes},
            host_files=dict(running.uploaded),
            expected=sorted({*running.uploaded, *wanted.blank}),
        )
