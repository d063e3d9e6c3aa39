"""What a transaction tells the controller: of the domain as it was found, and of how a merge ended."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from agent.host import dependents, files, images, paths
from agent.transactions.archive_steps import ReceiveImage
from agent.transactions.journal import AnyRequest
from agent.transactions.model import (
    AnyStep,
    CommitChild,
    ConvertImage,
    CreateOverlay,
    Plan,
    RebaseChild,
    ReplaceChild,
    SetAsideFrozen,
    SwitchDisks,
    flat,
)
from agent.transactions.survey import Survey
from agent.wire.plan import PlannedStep
from agent.wire.problem import Problem
from agent.wire.transaction import CloneRequest, DoomedVolume, FrozenFile, ImportRequest, RevertRequest, VolumeOutcome
from agent.wire.vm import Disk


def describe(request: AnyRequest, found: Survey) -> dict[str, Any]:
    """Give the fields of a prepared Transaction: what the controller keeps with the snapshot or the undo point."""
    keeps = not isinstance(request, RevertRequest) or request.undo is not None
    tops = {target: new for target, (_, new) in sources(found.plan).items()}
    if isinstance(request, CloneRequest | ImportRequest):
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
        "tpm_secret": found.domain.tpm_secret if found.domain else None,
        "steps": found.plan.names(),
        "total_bytes": total_bytes(found.plan),
    }


def total_bytes(plan: Plan) -> int:
    """Bound what a plan copies between image files."""
    return sum(step.allocated_bytes for step in _merges(plan)) + sum(_copied(plan))


def planned_steps(steps: Iterable[AnyStep]) -> list[PlannedStep]:
    """Give steps as a dry run shows them: what the journal would hold of each."""
    return [_planned(step) for step in steps]


def _planned(step: AnyStep) -> PlannedStep:
    facts: dict[str, Any] = msgspec.to_builtins(step)
    action = facts.pop("step")
    about = "frozen" if isinstance(step, CommitChild) else "child" if "child" in facts else "path"
    return PlannedStep(action=action, name=step.name, path=facts.get(about) or facts.get("staged"), facts=facts)


def sources(plan: Plan) -> dict[str, tuple[str, str]]:
    """Give the old and the new top of each disk that a plan switches."""
    switches = [step for step in flat(plan.switch) if isinstance(step, SwitchDisks)]
    return {target: pair for step in switches for target, pair in step.sources.items()}


def target_of(step: AnyStep) -> str:
    """Name the disk that a step of a merge works on."""
    return step.target if isinstance(step, RebaseChild | SetAsideFrozen | CommitChild | ReplaceChild) else ""


def merge_outcomes(
    plan: Plan, volumes: list[DoomedVolume], errors: dict[str, Problem], *, stopped: bool = False
) -> list[VolumeOutcome]:
    """Say of each disk whether its frozen file is gone, and what stands on what now.

    While one disk could not be merged, or the deletion was stopped, no frozen file goes, so no disk is ``done``.
    """
    return [_outcome(plan, volume, errors, done=not errors and not stopped) for volume in volumes]


def _outcome(plan: Plan, volume: DoomedVolume, errors: dict[str, Problem], *, done: bool) -> VolumeOutcome:
    merges = [step for step in _merges(plan) if step.target == volume.target]
    gone = not files.exists(Path(volume.path))
    # Where the file went in an earlier transaction whose end was not heard of, its children were rewritten then.
    named = [step.child for step in merges if gone or _is_rebased(step)] or (volume.children if gone else [])
    moved = [child for child in named if files.exists(Path(child))]
    backings = [dependents.backing_of(Path(child)) for child in moved]
    return VolumeOutcome(
        target=volume.target,
        done=done,
        moved_bytes=sum(_moved_bytes(step) for step in merges if step.child in moved),
        error=errors.get(volume.target),
        fingerprints={child: images.fingerprint(Path(child)) for child in moved},
        new_backing=str(backings[0]) if backings and backings[0] else None,
        altered=None if gone or not any(_began(step) for step in merges) else images.fingerprint(Path(volume.path)),
    )


def has_replaced(plan: Plan) -> bool:
    """Tell whether a frozen file has taken its child's place, so that its snapshot cannot be brought back."""
    return any(isinstance(step, ReplaceChild) and not files.exists(Path(step.frozen)) for step in flat(plan.switch))


def _is_rebased(step: RebaseChild | CommitChild) -> bool:
    """Tell whether a child stands on what it was to stand on, and not on anything that somebody else gave it."""
    below = dependents.backing_of(Path(step.child)) if dependents.is_image(Path(step.child)) else Path(step.child)
    return isinstance(step, RebaseChild) and below == (Path(step.backing) if step.backing else None)


def _moved_bytes(step: RebaseChild | CommitChild) -> int:
    """Say what was copied: all of a child that was committed, what a child that was rebased has grown by."""
    if isinstance(step, CommitChild):
        return step.allocated_bytes
    return max(0, min(step.allocated_bytes, paths.stat(Path(step.child)).st_blocks * 512 - step.child_bytes))


def _began(step: RebaseChild | CommitChild) -> bool:
    """Tell whether a commit has written to the frozen file."""
    return isinstance(step, CommitChild) and images.fingerprint(Path(step.frozen)) != step.fingerprint


def _merges(plan: Plan) -> list[RebaseChild | CommitChild]:
    return [step for step in flat(plan.switch) if isinstance(step, RebaseChild | CommitChild)]


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


def with_received(volumes: list[FrozenFile], step: ReceiveImage) -> list[FrozenFile]:
    """Complete what is told of an imported frozen file by what it is now; nothing writes to it after this. Blocks."""
    if step.position != 0:
        return volumes
    path = Path(step.staged)
    facts = {"fingerprint": images.fingerprint(path), "allocated_bytes": paths.stat(path).st_blocks * 512}
    return [msgspec.structs.replace(one, **facts) if one.target == step.target else one for one in volumes]
