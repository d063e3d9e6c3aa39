"""A host in memory: what a fake agent knows and does, without libvirt, disks or a journal."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec

from agent.wire.base import utc_now
from agent.wire.event import HostEvent
from agent.wire.host import HostFacts
from agent.wire.host_file import HostFileType, MissingHostFile
from agent.wire.plan import Plan, PlannedStep, planned
from agent.wire.problem import Problem
from agent.wire.transaction import (
    ENDED,
    CloneRequest,
    DeleteRequest,
    DepartRequest,
    FrozenFile,
    ImportRequest,
    PlaceRequest,
    RestoreRequest,
    RevertRequest,
    SnapshotRequest,
    Transaction,
    TransactionRequest,
    TransactionState,
    VolumeOutcome,
)
from agent.wire.upkeep import ImageState, Leftover
from agent.wire.vm import Disk, HostVm, Image
from tests.controller import fake_moves
from tests.controller.fake_machine import KINDS, SIZE, FakeFile, FakeVm, Refusal, Running, host_file


class FakeHost:
    """VMs, image files, transactions and events of one host."""

    def __init__(self) -> None:
        self.vms: dict[UUID, FakeVm] = {}
        self.files: dict[str, FakeFile] = {}
        self.transactions: dict[UUID, Running] = {}
        self.events: list[HostEvent] = []
        self.log = uuid4()
        self.oldest = 1
        self.undeletable: set[str] = set()
        self.piecemeal = False
        self.linger = 0
        self.uncloneable: set[str] = set()
        self.copying = False
        self.slow_merges = False
        self.half_written: set[str] = set()
        self.changed = asyncio.Event()
        self.facts = msgspec.structs.replace(HostFacts.example(), now=None)
        self.leftovers: list[Leftover] = []
        self.complete = True
        self.corrupt: set[str] = set()

    def add_vm(self, name: str = "win11", disks: tuple[str, ...] = ("vda", "vdb"), **changes: Any) -> FakeVm:
        """Define a shut-off UEFI and TPM domain with one plain file per disk."""
        vm = FakeVm(
            uuid=uuid4(),
            name=name,
            tops={target: f"/images/{name}.{target}.qcow2" for target in disks},
            host_files={"nvram": b"nvram of " + name.encode(), "tpm": b"tpm of " + name.encode()},
            expected=["nvram", "tpm"],
        )
        for key, value in changes.items():
            setattr(vm, key, value)
        for path in vm.tops.values():
            self.files[path] = FakeFile(backing=None)
        self.vms[vm.uuid] = vm
        return vm

    def happen(self, type: str, vm: FakeVm, **data: Any) -> None:
        """Append one event to the log."""
        seq = self.oldest + len(self.events)
        self.events.append(
            HostEvent(seq=seq, at=utc_now(), type=type, source="hook", vm=vm.uuid, vm_name=vm.name, data=data)
        )
        self.changed.set()

    def renew_log(self) -> None:
        """Do as a host that was set up anew."""
        self.log, self.events, self.oldest = uuid4(), [], 1

    def expire_leases(self) -> None:
        """Let every lease run out."""
        for running in self.transactions.values():
            if running.view.state == "prepared":
                self.abort(running, Refusal(409, "lease-expired").problem)

    def chain(self, path: str) -> list[str]:
        """Return the paths from a file down to its root."""
        found: list[str] = []
        at: str | None = path
        while at is not None:
            found.append(at)
            at = self.files[at].backing
        return found

    def find_vm(self, uuid: UUID) -> FakeVm:
        if uuid not in self.vms:
            raise Refusal(404, "domain-not-found", vm=str(uuid))
        return self.vms[uuid]

    def check_free(self, vm: FakeVm) -> None:
        if vm.state != "shut-off":
            raise Refusal(409, "domain-running", name=vm.name)
        for running in self.transactions.values():
            if running.view.vm == vm.uuid and running.view.state not in ENDED:
                raise Refusal(409, "domain-busy", name=vm.name)

    def foresee(self, id: UUID, vm: FakeVm, wanted: TransactionRequest) -> Plan:
        """Return what prepare would come to: one step that names it, or the refusal."""
        try:
            self.check_free(vm)
            self.prepare(id, vm, wanted)
        except Refusal as refusal:
            return planned(KINDS[type(wanted)], [], [refusal.problem], vm=vm.uuid)
        return planned(KINDS[type(wanted)], [PlannedStep(action="fake", name="do it")], [], bytes_to_move=SIZE)

    def prepare(self, id: UUID, vm: FakeVm, wanted: TransactionRequest) -> Running:
        """Begin a transaction; ``vm`` is the source of a clone."""
        view = msgspec.structs.replace(self.begun(id, wanted), domain_xml=f"<domain><name>{vm.name}</name></domain>")
        if isinstance(wanted, DepartRequest | PlaceRequest | RestoreRequest):
            return fake_moves.prepare(self, wanted, view)
        if isinstance(wanted, SnapshotRequest):
            return self._prepare_snapshot(vm, wanted, view)
        if isinstance(wanted, RevertRequest):
            return self._prepare_revert(vm, wanted, view)
        if isinstance(wanted, CloneRequest):
            return self._prepare_clone(wanted, view)
        for volume in wanted.volumes if isinstance(wanted, DeleteRequest) else []:
            assert sorted(volume.children) == sorted(self._children(volume.path)), volume
        return Running(wanted, view)

    def begun(self, id: UUID, wanted: TransactionRequest) -> Transaction:
        """Return a transaction of which nothing is known yet."""
        now = utc_now()
        return Transaction(
            id=id,
            kind=KINDS[type(wanted)],
            vm=wanted.vm,
            snapshot=getattr(wanted, "snapshot", None),
            state="prepared",
            started_at=now,
            lease_expires_at=now + timedelta(seconds=wanted.lease_s),
        )

    def _prepare_snapshot(self, vm: FakeVm, wanted: SnapshotRequest, view: Transaction) -> Running:
        if unknown := set(wanted.exclude) - set(vm.tops):
            raise Refusal(409, "disk-unknown", target=min(unknown))
        captured = self._capture(vm, wanted.host_files)
        view = msgspec.structs.replace(
            view,
            volumes=[self._frozen(view.id, t, path) for t, path in vm.tops.items() if t not in wanted.exclude],
            excluded=list(wanted.exclude),
            host_files=[host_file(kind, data) for kind, data in captured.items()],
            expected=vm.expected if wanted.host_files != "none" else [],
            missing=self.missing(vm) if wanted.host_files != "none" else [],
        )
        return Running(wanted, view, captured)

    def _prepare_revert(self, vm: FakeVm, wanted: RevertRequest, view: Transaction) -> Running:
        for volume in wanted.volumes:
            if volume.path not in self.files or self.fingerprint(volume.path) != volume.fingerprint:
                raise Refusal(409, "frozen-file-altered", target=volume.target, path=volume.path)
        known = {volume.target for volume in wanted.volumes}
        if not wanted.alone and (more := set(vm.tops) - known - set(wanted.excluded)):
            raise Refusal(409, "disk-attached", target=min(more))
        if missing := known - set(vm.tops):
            raise Refusal(409, "disk-detached", target=min(missing))
        going = {ref.type for ref in wanted.host_files} | set(wanted.remove)
        kept = [kind for kind in vm.host_files if kind not in going]
        view = msgspec.structs.replace(view, kept=kept)
        if wanted.undo is None:
            return Running(wanted, view)
        captured = {} if wanted.alone else self._capture(vm, "best-effort")
        view = msgspec.structs.replace(
            view,
            volumes=[self._frozen(view.id, t, vm.tops[t]) for t in vm.tops if t in known],
            excluded=[t for t in vm.tops if t not in known],
            host_files=[host_file(kind, data) for kind, data in captured.items()],
            expected=[] if wanted.alone else vm.expected,
            missing=[] if wanted.alone else self.missing(vm),
        )
        return Running(wanted, view, captured)

    def _prepare_clone(self, wanted: CloneRequest, view: Transaction) -> Running:
        for vm in self.vms.values():
            if wanted.name == vm.name or wanted.vm == vm.uuid:
                raise Refusal(409, "domain-exists", name=vm.name)
        if wanted.name in self.uncloneable:
            raise Refusal(409, "no-space", name=wanted.name)
        held = {ref.type for ref in wanted.host_files}
        types: list[HostFileType] = ["nvram"] if wanted.tpm == "reset" else ["nvram", "tpm"]
        needed = [kind for kind in types if kind in self.vms[wanted.source].expected]
        if missing := [kind for kind in needed if kind not in held]:
            raise Refusal(409, "host-file-missing", type=missing[0])
        for volume in wanted.volumes:
            if volume.path not in self.files or self.fingerprint(volume.path) != volume.fingerprint:
                raise Refusal(409, "frozen-file-altered", target=volume.target, path=volume.path)
        volumes = [self._frozen(view.id, one.target, one.path) for one in wanted.volumes]
        state: TransactionState = "preparing" if wanted.mode == "full" and self.copying else "prepared"
        return Running(wanted, msgspec.structs.replace(view, state=state, volumes=volumes, expected=needed))

    def _make_clone(self, running: Running, wanted: CloneRequest) -> None:
        if waiting := {*running.view.expected} - set(running.uploaded):
            raise Refusal(409, "host-file-not-uploaded", types=sorted(waiting))
        made = FakeVm(
            uuid=wanted.vm,
            name=wanted.name,
            tops={},
            host_files=dict(running.uploaded),
            expected=self.vms[wanted.source].expected,
        )
        self.vms[wanted.vm] = made
        for volume in running.view.volumes:
            self._overlay(made, volume.target, volume.overlay, volume.path)
            if wanted.mode == "full":
                self.files[volume.overlay] = FakeFile(backing=None)

    def _capture(self, vm: FakeVm, policy: str) -> dict[HostFileType, bytes]:
        if policy == "none":
            return {}
        if policy == "required" and (missing := self.missing(vm)):
            raise Refusal(409, missing[0].code, type=missing[0].type, reason=missing[0].reason)
        return {kind: data for kind, data in vm.host_files.items() if kind not in vm.broken}

    def missing(self, vm: FakeVm) -> list[MissingHostFile]:
        return [
            MissingHostFile(
                type=kind,
                path=f"/host/{kind}",
                code="host-file-damaged" if kind in vm.broken else "host-file-missing",
                reason=vm.broken.get(kind, "it is gone"),
            )
            for kind in vm.expected
            if kind in vm.broken or kind not in vm.host_files
        ]

    def _frozen(self, id: UUID, target: str, path: str) -> FrozenFile:
        return FrozenFile(
            target=target,
            path=path,
            format="qcow2",
            backing=self.files[path].backing,
            virtual_size_bytes=SIZE,
            allocated_bytes=SIZE // 4,
            fingerprint=self.fingerprint(path),
            overlay=f"/images/cf-{id}.{target}.qcow2",
        )

    def fingerprint(self, path: str) -> str:
        """Return what changes when the file is written to."""
        return f"{SIZE}:{self.files[path].version}"

    def image_state(self, path: str, *, deep: bool) -> ImageState:
        """Return one image file as the agent shows it."""
        if path not in self.files:
            return ImageState(path=path, exists=False, problem="it does not exist")
        errors = (1 if path in self.corrupt else 0) if deep else None
        return ImageState(
            path=path,
            exists=True,
            backing=self.files[path].backing,
            virtual_size_bytes=SIZE,
            allocated_bytes=SIZE // 4,
            fingerprint=self.fingerprint(path),
            errors=errors,
            leaked_clusters=0 if deep else None,
        )

    def _children(self, path: str) -> list[str]:
        return [name for name, file in self.files.items() if file.backing == path]

    def switch(self, running: Running) -> None:
        view = running.view
        if isinstance(running.request, SnapshotRequest):
            for volume in view.volumes:
                self._overlay(self.vms[view.vm], volume.target, volume.overlay, volume.path)
        elif isinstance(running.request, RevertRequest):
            self._put_back(self.vms[view.vm], running, running.request)
        elif isinstance(running.request, RestoreRequest):
            self._receive(self.vms[view.vm], running, running.request)
        elif isinstance(running.request, CloneRequest):
            self._make_clone(running, running.request)
        elif isinstance(running.request, DepartRequest | PlaceRequest | ImportRequest):
            fake_moves.switch(self, running)
        elif not isinstance(running.request, DeleteRequest):
            raise Refusal(501, "not-played")
        elif self.slow_merges:
            running.view = msgspec.structs.replace(view, state="committing", total_bytes=SIZE)
            return
        else:
            outcomes = self._merge_all(running.request)
            view = msgspec.structs.replace(view, outcomes=outcomes, done_bytes=SIZE, total_bytes=SIZE)
        running.view = msgspec.structs.replace(view, state="committed", ended_at=utc_now())

    def _overlay(self, vm: FakeVm, target: str, overlay: str, backing: str) -> None:
        self.files[overlay] = FakeFile(backing=backing)
        vm.tops[target] = overlay

    def _receive(self, vm: FakeVm, running: Running, wanted: RevertRequest | RestoreRequest) -> None:
        if waiting := {ref.type for ref in wanted.host_files} - set(running.uploaded):
            raise Refusal(409, "host-file-not-uploaded", types=sorted(waiting))
        vm.host_files.update(running.uploaded)
        for kind in running.uploaded:
            vm.broken.pop(kind, None)

    def _put_back(self, vm: FakeVm, running: Running, wanted: RevertRequest) -> None:
        self._receive(vm, running, wanted)
        for volume in wanted.volumes:
            old = vm.tops[volume.target]
            self._overlay(vm, volume.target, f"/images/cf-{running.view.id}.{volume.target}.qcow2", volume.path)
            if wanted.undo is None and not self._children(old):
                del self.files[old]
        for kind in wanted.remove:
            vm.host_files.pop(kind, None)
        if not wanted.alone:
            vm.expected = [kind for kind in vm.expected if kind not in wanted.remove]

    def _merge_all(self, wanted: DeleteRequest) -> list[VolumeOutcome]:
        """Rebase every child that can be; the frozen files go only when all could, unless ``piecemeal``."""
        outcomes = [self._rebase(volume.target, volume.path) for volume in wanted.volumes]
        failed = any(outcome.error for outcome in outcomes)
        for volume, outcome in zip(wanted.volumes, outcomes, strict=True):
            if outcome.done and (self.piecemeal or not failed):
                self.files.pop(volume.path, None)
        kept = [msgspec.structs.replace(outcome, done=False) for outcome in outcomes]
        return kept if failed and not self.piecemeal else outcomes

    def _rebase(self, target: str, path: str) -> VolumeOutcome:
        if path in self.undeletable:
            error = Refusal(500, "qemu-img-failed", path=path).problem
            if path not in self.half_written:
                return VolumeOutcome(target=target, done=False, error=error)
            self.files[path].version += 1
            return VolumeOutcome(target=target, done=False, error=error, altered=self.fingerprint(path))
        children = self._children(path)
        backing = self.files[path].backing if path in self.files else None
        for child in children:
            self.files[child] = FakeFile(backing=backing, version=self.files[child].version + 1)
        return VolumeOutcome(
            target=target,
            done=True,
            moved_bytes=SIZE // 4 if children else 0,
            fingerprints={child: self.fingerprint(child) for child in children},
            new_backing=backing if children else None,
        )

    def abort(self, running: Running, error: Problem | None) -> None:
        if running.view.state == "committing" and isinstance(running.request, DeleteRequest):
            first = running.request.volumes[0]  # the others had not been begun
            outcome = msgspec.structs.replace(self._rebase(first.target, first.path), done=False)
            running.view = msgspec.structs.replace(running.view, outcomes=[outcome])
            error = Refusal(409, "aborted").problem
        if running.view.state not in ENDED:
            running.view = msgspec.structs.replace(running.view, state="aborted", ended_at=utc_now(), error=error)

    def view(self, vm: FakeVm) -> HostVm:
        return HostVm(
            uuid=vm.uuid,
            name=vm.name,
            state=vm.state,
            persistent=True,
            managed_save=False,
            firmware="uefi" if "nvram" in vm.expected else "bios",
            tpm="2.0" if "tpm" in vm.expected else None,
            nvram="/host/nvram" if "nvram" in vm.expected else None,
            disks=[self._disk(target, path) for target, path in vm.tops.items()],
            domain_xml=f"<domain><name>{vm.name}</name></domain>",
            guard=vm.guard,
        )

    def _disk(self, target: str, path: str) -> Disk:
        if path not in self.files:
            return Disk(target=target, path=path, format="qcow2", problem="it is not there")
        images = [
            Image(
                path=name,
                format="qcow2",
                virtual_size_bytes=SIZE,
                allocated_bytes=SIZE // 4,
                backing=self.files[name].backing,
                fingerprint=self.fingerprint(name),
            )
            for name in self.chain(path)
        ]
        return Disk(
            target=target,
            path=path,
            format="qcow2",
            virtual_size_bytes=SIZE,
            chain_depth=len(images),
            chain=images,
        )
