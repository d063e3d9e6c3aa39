"""The demos are the main job from end to end, on one host and on two; they must hold whatever else changes."""

import pytest

from tests.e2e import demo, demo_fleet


@pytest.mark.real
@pytest.mark.case("S1")
@pytest.mark.case("R1")
def test_the_demo_passes_and_says_so_in_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    status = demo.main()
    told = capsys.readouterr()
    assert status == 0, told.out + told.err
    assert told.out.splitlines()[-1] == "demo: 20 checks passed"


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.case("P1")
@pytest.mark.case("R2")
@pytest.mark.case("D3")
@pytest.mark.case("C2")
def test_the_demo_of_two_hosts_passes_and_says_so_in_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    status = demo_fleet.main()
    told = capsys.readouterr()
    assert status == 0, told.out + told.err
    assert told.out.splitlines()[-1] == "demo-fleet: 17 checks passed"
