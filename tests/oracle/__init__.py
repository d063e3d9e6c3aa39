"""Random histories of VMs and their snapshots, each step compared with what was written down when it was made."""

import pytest

pytest.register_assert_rewrite("tests.oracle.machine", "tests.oracle.world")
