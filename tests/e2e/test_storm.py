"""Two storms, side by side where there are two cores: 500 cycles together, each with at least one SIGKILL."""

from collections.abc import Callable

import pytest

from tests.e2e import storm
from tests.visits import Struck

CYCLES = 250


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.case("F1")
@pytest.mark.case("F2")
@pytest.mark.case("F3")
@pytest.mark.case("F7")
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_dies_when_everything_is_old_or_new_and_the_vms_start(
    seed: int, lab_ready: None, record_property: Callable[[str, object], None], struck: Struck
) -> None:
    tally = storm.run(CYCLES, seed)
    for line in tally.told().splitlines():
        record_property("figure", line)
    struck(tally.cycles)
    assert tally.cycles == CYCLES
    assert set(tally.kills) == {f"agent-storm{seed}", "controller", "both"}
    kinds = {name.split()[0] for name in tally.operations}
    assert kinds == {"create", "revert", "delete", "sync"}
