"""What a transaction tells the controller: of the domain as it was found, and of how a merge ended."""

from pathlib import Path
from typing import Any

from agent.host import dependents, images
from agent.transactions.journal import AnyRequest
from agent.transactions.model import (
    AnyStep,
    ConvertImage,
    CreateOverlay,
    Plan,
    RebaseChild,
    RemoveFile,
    SwitchDisks,
    flat,
)
from agent.transactions.survey import Survey
from agent.wire.problem import Problem
from agent.wire.transaction import CloneRequest, FrozenFile, RevertRequest, VolumeOutcome
from agent.wire.vm import Disk


def describe(request: AnyRequest, found: Survey) -> dict[str, Any]:
    """Give the fields of a prepared Transaction: what the controller keeps with the snapshot or the undo point."""
    keeps = not isinstance(request, RevertRequest) or request.undo is not None
    tops = {target: new for target, (_, new) in sources(found.plan).items()}
    if isinstance(request, CloneRequest):
        made = [step for step in flat(found.plan.stage) if isinstance(step, CreateOverlay | ConvertImage)]
        tops = {step.target: step.path for step in made}
    return {
        "volumes": [_frozen(disk, tops[disk.target]) for disk in found.disks if keeps and disk.target in tops],
        "excluded": found.plan.excluded,
        "expected": found.host_files.expected,
        "missing": found.plan.missing,
        "kept": found.plan.kept,
        "domain_xml": found.domain_xml,
        "firmware": found.firmware,
        "tpm_secret": found.domain.tpm_secret,
        "steps": found.plan.names(),
        "total_bytes": sum(step.allocated_bytes for step in _rebases(found.plan)) + sum(_copied(found.plan)),
    }


def sources(plan: Plan) -> dict[str, tuple[str, str]]:
    """Give the old and the new top of each disk that a plan switches."""
    switches = [step for step in flat(plan.switch) if isinstance(step, SwitchDisks)]
    return {target: pair for step in switches for target, pair in step.sources.items()}


def target_of(step: AnyStep) -> str:
    """Name the disk that a step of a merge works on."""
    return step.target if isinstance(step, RebaseChild | RemoveFile) else ""


def merge_outcomes(plan: Plan, targets: list[str], errors: dict[str, Problem]) -> list[VolumeOutcome]:
    """Say of each disk whether its frozen file is gone, and what stands on what now.

    While one disk could not be merged no frozen file goes, so no disk is ``done``.
    """
    return [_outcome(plan, target, errors) for target in targets]


def _outcome(plan: Plan, target: str, errors: dict[str, Problem]) -> VolumeOutcome:
    merges = [step for step in _rebases(plan) if step.target == target]
    moved = [step for step in merges if dependents.backing_of(Path(step.child)) != Path(step.frozen)]
    return VolumeOutcome(
        target=target,
        done=not errors,
        moved_bytes=sum(step.allocated_bytes for step in moved),
        error=errors.get(target),
        fingerprints={step.child: images.fingerprint(Path(step.child)) for step in moved},
        new_backing=moved[0].backing if moved else None,
    )


def _rebases(plan: Plan) -> list[RebaseChild]:
    return [step for step in flat(plan.switch) if isinstance(step, RebaseChild)]


def _copied(plan: Plan) -> list[int]:
    return [step.size_bytes for step in flat(plan.stage) if isinstance(step, ConvertImage)]


def _frozen(disk: Disk, overlay: str) -> FrozenFile:
    top = disk.chain[0]
    return FrozenFile(
        target=disk.target,
        path=top.path,
        format=top.format,
        backing=top.backing,
        virtual_size_bytes=top.virtual_size_bytes,
        allocated_bytes=top.allocated_bytes,
        fingerprint=top.fingerprint,
        overlay=overlay,
    )
