"""Whatever happens to snapshots, in any order: each keeps what it held, the VM too, and nothing is left over."""

import secrets

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.oracle.machine import History

STEPS = 40


def histories(count: int, number: int) -> list[int]:
    """Run random histories, the same ones for the same number; return how many steps each had."""
    History.lengths.clear()
    wanted = settings(
        max_examples=count,
        stateful_step_count=STEPS + 2,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(History), settings=wanted)
    return History.lengths


@pytest.mark.case("D3")
@pytest.mark.case("F7")
def test_random_histories_lose_nothing_and_leave_nothing() -> None:
    found = histories(2, number=3)
    assert len([steps for steps in found if steps >= STEPS]) >= 2, found


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("number", [*range(10, 18), 0])
def test_many_random_histories_lose_nothing_and_leave_nothing(number: int) -> None:
    number = number or secrets.randbits(32)
    print(f"seed {number}")  # noqa: T201 - pytest shows it with a failure
    found = histories(6, number)
    assert len([steps for steps in found if steps >= STEPS]) >= 6, found
