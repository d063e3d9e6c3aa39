"""What ``make bench`` says of deletions, on smaller disks."""

from pathlib import Path

import pytest

from tests.bench import merges


@pytest.mark.case("D4")
def test_deletion_moves_what_the_smaller_of_two_files_holds(tmp_path: Path) -> None:
    below, above = merges.measure(tmp_path, disk_mib=64)
    for one in (below, above):
        assert one.ratio <= merges.MOST
        assert one.coldframe <= merges.MOST * min(one.always_rebase, one.always_commit)
    assert below.always_rebase > 10 * below.coldframe
    assert above.always_commit > 10 * above.coldframe
