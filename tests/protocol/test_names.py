"""The names of the model's steps are those of the code, both ways, so that neither drifts from the other."""

import ast
import re
from pathlib import Path
from typing import NoReturn, get_args

from agent.transactions import journal
from agent.transactions.manager import Manager
from agent.transactions.running import Running
from controller.operations import ending, leftovers, transaction
from controller.operations.engine import Engine
from controller.operations.job import Job
from controller.store import operations
from tests.agent.transactions import story
from tests.agent.transactions.rig import Rig
from tests.contract.sources import ROOT
from tests.protocol.checker import MODEL

STEPS = re.compile(r'AT\("(\w+): (.+?)\\n"\)|STEP\("(\w+): (.+?)\\n"\)')
#: Of one real run: the disk that the model does not have, the looks that change nothing, what only a deletion does.
NOT_MODELLED = {"create-overlay vdb", "undo create-overlay vdb"}


def modelled(who: str) -> set[str]:
    """Return the names of the steps of one process of the model."""
    found = STEPS.findall(MODEL.read_text(encoding="utf-8"))
    return {what or step for actor, what, other, step in found if who in (actor, other)}


async def points_of_a_good_and_an_undone_revert(rig: Rig) -> set[str]:
    """Run a snapshot, a revert, and a revert that is aborted; return the points without their before and after."""
    heard: set[str] = set()
    manager = rig.manager(lambda name: heard.add(name.split(" ", 1)[1]))
    taken, host_files = await story.snapshot(manager)
    story.change_everything(rig)
    await story.revert(manager, story.revert_request(taken, host_files), host_files)
    edited = rig.manager(lambda name: heard.add(name.split(" ", 1)[1]))
    await edited.recover()
    story.change_everything(rig, 0x43)
    request = story.revert_request(taken, host_files)
    rig.hypervisor.define = _refused  # type: ignore[method-assign]  # libvirt is played here; it refuses the switch
    try:
        await story.revert(edited, request, host_files)
    except RuntimeError:
        return heard
    raise AssertionError("the switch was not refused")


async def _refused(xml: str) -> NoReturn:
    raise RuntimeError(xml[:0])


async def test_every_point_of_a_transaction_is_a_step_of_the_model_and_the_other_way_round(tmp_path: Path) -> None:
    real = await points_of_a_good_and_an_undone_revert(Rig(tmp_path, disks=1).build())
    functions = {name for kind in (Manager, Running) for name in vars(kind)}
    steps = modelled("agent")
    points = {one for one in steps if one not in functions and one not in {"survey", "lease-expired"}}
    assert points == real - NOT_MODELLED


def test_the_journals_records_are_those_of_the_model() -> None:
    kinds = {f"journal {kind.__name__.lower()}" for kind in get_args(journal.Record)}
    assert {one for one in modelled("agent") if one.startswith("journal ")} == kinds


def test_what_the_controller_does_in_the_model_it_does_in_the_code() -> None:
    known = {*vars(transaction), *vars(ending), *vars(leftovers), *vars(operations), *vars(Job), *vars(Engine)}
    known |= {"step prepare", "upload"}
    assert modelled("controller") - known == set()


def test_what_the_controller_asks_of_an_agent_is_in_the_model() -> None:
    """``renew`` is not: in the model a lease may run out at any time. Nor is a dry run, which changes nothing."""
    asked = set()
    for name in ("transaction", "revert", "snapshot_create"):
        tree = ast.parse((ROOT / "controller" / "operations" / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "job.client":
                asked.add(node.attr)
    assert asked - {"renew", "captured", "url", "plan_transaction"} == {
        "put_transaction",
        "upload",
        "commit",
        "abort",
        "transaction",
    }
    assert {"put", "upload", "commit", "abort", "get"} <= modelled("agent")
    assert {"transaction", "commit", "abort", "upload", "prepare"} <= modelled("controller")


def test_the_hooks_functions_are_those_of_the_model() -> None:
    hook = (ROOT / "hooks" / "qemu").read_text(encoding="utf-8")
    defined = set(re.findall(r"^(\w+)\(\) \{", hook, re.MULTILINE))
    assert modelled("hook") - defined == set()
    assert {"prepare", "lock", "check_guard", "mark_starting", "started", "stopped", "release"} == modelled("hook")
