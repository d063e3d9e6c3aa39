"""What every test has: the case plugin and the watch over blocking calls."""

from tests import blocking

pytest_plugins = ["tests.cases", "tests.lab.fixtures"]

blocking.forbid()
