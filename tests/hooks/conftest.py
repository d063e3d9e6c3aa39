"""The hook under dash (Debian's sh) and under bash (that of Fedora and RHEL)."""

from pathlib import Path

import pytest

from tests.hooks.hook import Hook


@pytest.fixture(params=[["dash"], ["bash", "--posix"]], ids=["dash", "bash"])
def hook(request: pytest.FixtureRequest, tmp_path: Path) -> Hook:
    return Hook(tmp_path, request.param).install()
