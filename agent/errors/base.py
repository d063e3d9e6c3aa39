"""What the other errors of the agent are kinds of."""

from agent.web.errors import Error
from agent.wire.problem import Problem


class NotFound(Error):
    """The thing asked for does not exist."""

    status, code, message = 404, "not-found", "{what} does not exist"


class Refused(Error):
    """The present state forbids the work. Nothing was touched."""

    status, code, message = 409, "refused", "{reason}; nothing was touched"


class Recorded(Error):
    """A failure that was recorded earlier, told again to whoever repeats the request."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self._problem = problem

    def __str__(self) -> str:
        """Say what was recorded."""
        return self._problem.detail

    def problem(self) -> Problem:
        """Give the problem as it was recorded."""
        return self._problem
