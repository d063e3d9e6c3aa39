"""The model holds within its bounds, and each way of breaking the protocol is found."""

import re
from pathlib import Path

import pytest

from tests.protocol.checker import MODEL, check

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
ROW = re.compile(r"^\| `([A-Z0-9_= ]+)` \| (.+) \|$", re.MULTILINE)

#: The bounds of docs/protocol.md. It tells the states that the quick runs visit exactly, those of the slow ones about.
QUICK = ["NETWORK=1", "AGENT_KILLS=1 STARTS=1", "NETWORK=1 CONTROLLER_KILLS=1 STARTS=0", "ENGINES=2 STARTS=0"]
SLOW = [
    "NETWORK=1 STEP_FAILURES=1 AGENT_KILLS=1 CONTROLLER_KILLS=1",
    "AGENT_KILLS=1 REBOOTS=1 LIBVIRTD_RESTARTS=1 STARTS=2",
    "OPERATIONS=2 AGENT_KILLS=1 STARTS=0",
    "ENGINES=2 NETWORK=1 STARTS=0",
]
#: Each breaks one rule; what it needs to show, and the invariant that then does not hold.
MUTATIONS = {
    "SWITCH_BEFORE_JOURNAL AGENT_KILLS=1": "all_or_nothing",
    "LEASE_DURING_COMMIT": "all_or_nothing",
    "GUARD_AFTER_CHECK": "never_in_the_middle",
    "HOOK_WITHOUT_LOCK": "never_in_the_middle",
    "DROP_GUARD_BEFORE_ENDED": "never_in_the_middle",
    "STAGE_BEFORE_PLAN AGENT_KILLS=1": "no_orphans",
    "PUT_BEGINS_AGAIN CONTROLLER_KILLS=1": "effect_once",
    "READY_BEFORE_COMMIT NETWORK=1": "records_match_hosts",
    "OUTCOME_FORGOTTEN AGENT_KILLS=1": "records_match_hosts",
    "COMMIT_UNSEALED NETWORK=2": "the_answer_is_true",
    "REFUTED_WITHOUT_ABORT NETWORK=2 STEP_FAILURES=1": "the_answer_is_true",
    "UNFENCED ENGINES=2 STARTS=0": "the_answer_is_true",
    "RECOVERY_ONCE AGENT_KILLS=1": "not_held",
}
#: One for each guarantee that a broken rule can cost; `make test-slow` tries them all.
QUICK_MUTATIONS = ["HOOK_WITHOUT_LOCK"]


@pytest.mark.parametrize("bounds", QUICK)
def test_nothing_is_violated_within_small_bounds(tmp_path: Path, bounds: str) -> None:
    run = check(tmp_path, *bounds.split())
    print(f"{bounds}: {run.states} states, depth {run.depth}")  # noqa: T201 - the run's result, shown by pytest -rP
    assert run.violated is None
    assert f"| `{bounds}` | {run.states} | {run.depth} |" in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bounds", SLOW)
def test_nothing_is_violated_within_larger_bounds(tmp_path: Path, bounds: str) -> None:
    run = check(tmp_path, *bounds.split(), optimise=True)
    print(f"{bounds}: {run.states} states, depth {run.depth}")  # noqa: T201 - the run's result, shown by pytest -rP
    assert run.violated is None
    assert f"| `{bounds}` | about " in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_operation_ends_whatever_is_lost_and_killed(tmp_path: Path) -> None:
    assert check(tmp_path, "NETWORK=1", "AGENT_KILLS=1", claim="every_operation_ends").violated is None


@pytest.mark.parametrize("mutation", QUICK_MUTATIONS)
def test_a_broken_rule_is_found(tmp_path: Path, mutation: str) -> None:
    assert check(tmp_path, *mutation.split()).violated == MUTATIONS[mutation]


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_each_broken_rule_is_found_by_its_invariant(tmp_path: Path, mutation: str) -> None:
    assert check(tmp_path, *mutation.split()).violated == MUTATIONS[mutation]


def test_the_page_names_the_mutations_and_invariants_of_the_model_and_no_others() -> None:
    page, model = PAGE.read_text(encoding="utf-8"), MODEL.read_text(encoding="utf-8")
    tried = {name.split()[0] for name in MUTATIONS}
    assert tried == set(re.findall(r"^#ifn?def (\w+)$", model, re.MULTILINE)) - set(
        re.findall(r"^#define (\w+) \d+$", model, re.MULTILINE)
    )
    told = {bounds.split()[0]: invariant for bounds, invariant in ROW.findall(page) if bounds.split()[0] in tried}
    assert told == {name.split()[0]: f"`{invariant}`" for name, invariant in MUTATIONS.items()}
    invariants = set(re.findall(r"INVARIANT\((\w+), ", model)) - {"name"}
    assert set(re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)) == invariants
