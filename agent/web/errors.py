"""The base of both daemons' error trees, and how an error becomes a Problem."""

from typing import Any, ClassVar

from agent.wire.problem import Problem


class Error(Exception):
    """The root of every error that a client may see.

    A subclass sets ``status`` (HTTP), ``code`` (stable, documented) and ``message``, a ``str.format`` template
    over the facts given to the constructor. A message says what is wrong, what was left untouched and what to do.
    The first line of the subclass's docstring becomes the Problem's title.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"
    message: ClassVar[str] = "Something unexpected went wrong; the server's log has the details"

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        super().__init__(self.message.format(**facts))

    def problem(self) -> Problem:
        """Render the error as it crosses the wire."""
        return Problem(
            title=(type(self).__doc__ or "").strip().split("\n", 1)[0],
            status=self.status,
            code=self.code,
            detail=str(self),
            type=f"/docs#{self.code}",
            facts=self.facts,
        )
