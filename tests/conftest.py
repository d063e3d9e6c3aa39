"""What every test has: the case plugin, the watch over blocking calls, and no files left in the working tree."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from tests import blocking

pytest_plugins = ["tests.cases", "tests.visits", "tests.lab.fixtures"]

blocking.forbid()
# aiohttp reads the machine's certificates when it is imported: 60 ms for each of a thousand processes, to no end here.
os.environ["SSL_CERT_FILE"] = os.devnull
os.environ["SSL_CERT_DIR"] = os.devnull


def pytest_configure(config: pytest.Config) -> None:
    """As root in somebody's working tree, keep hypothesis's files elsewhere: their owner could not remove them."""
    if Path(__file__).stat().st_uid != os.geteuid():
        elsewhere = tempfile.TemporaryDirectory(prefix="coldframe-hypothesis-")
        set_hypothesis_home_dir(elsewhere.name)
        config.add_cleanup(elsewhere.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests on private hosts: they take longest and mostly wait, so others fill up around their end."""
    items.sort(key=lambda item: item.get_closest_marker("real") is None)
