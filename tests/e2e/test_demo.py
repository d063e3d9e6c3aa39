"""The demo is the main job from end to end; it must hold whatever else changes."""

import pytest

from tests.e2e import demo


@pytest.mark.real
@pytest.mark.case("S1")
@pytest.mark.case("R1")
def test_the_demo_passes_and_says_so_in_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    status = demo.main()
    told = capsys.readouterr()
    assert status == 0, told.out + told.err
    assert told.out.splitlines()[-1] == "demo: 20 checks passed"
