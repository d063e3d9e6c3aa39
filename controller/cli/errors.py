"""What can go wrong on the operator's side, and the exit status of each failure.

::

    Error
    ├── Answered                 the controller said no; carries its Problem
    ├── ControllerUnreachable    nobody answers there
    │   └── NotAController       somebody answers, and it is not a controller
    ├── SnapshotUnclear          several snapshots fit what was typed
    ├── SnapshotUnknown          none does
    ├── FileRefused              a file on this machine cannot be read or written
    └── BytesDiffer              a download does not have its hash
"""

from agent.web.errors import Error
from agent.wire.problem import Problem

SUCCESS, FAILED, USAGE, NOT_FOUND, CONFLICT, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

#: Codes of what was typed wrong, whatever their HTTP status.
_MISTYPED = frozenset({"name-invalid"})


class Answered(Error):
    """The controller refused the call, or the operation failed."""

    message = "{detail}"

    def __init__(self, problem: Problem) -> None:
        super().__init__(detail=problem.detail)
        self._problem = problem

    def problem(self) -> Problem:
        """Return the Problem as the controller sent it."""
        return self._problem


class ControllerUnreachable(Error):
    """The controller does not answer."""

    status, code = 503, "controller-unreachable"
    message = (
        "No controller answers at {url}: {reason}. "
        "Say where it is with --url or COLDFRAME_URL, and see that coldframe-controller runs there"
    )


class NotAController(ControllerUnreachable):
    """What answers there is not a Coldframe controller."""

    code = "not-a-controller"
    message = "What answers at {url} is not a Coldframe controller: {reason}. Check --url or COLDFRAME_URL"


class SnapshotUnclear(Error):
    """Several snapshots fit."""

    status, code = 409, "snapshot-unclear"
    message = "{text} fits several snapshots: {uuids}; nothing was touched. Use the whole UUID"


class SnapshotUnknown(Error):
    """No snapshot fits."""

    status, code = 404, "snapshot-not-found"
    message = (
        "No snapshot fits {text}; give its UUID, the beginning of it (4 characters or more) or VM/NAME. "
        "See: coldframe snapshot list"
    )


class FileRefused(Error):
    """A file on this machine cannot be used."""

    code, message = "file-refused", "{path}: {reason}; nothing was changed"


class BytesDiffer(Error):
    """What was downloaded is not what the controller holds."""

    code, message = (
        "bytes-differ",
        "The bytes that arrived have SHA-256 {found}, not {expected}; {path} was not written",
    )


def exit_status(problem: Problem) -> int:
    """Return the exit status for a Problem, whether a call was refused or an operation failed with it."""
    by_status = {
        400: USAGE,
        404: NOT_FOUND,
        410: NOT_FOUND,
        409: CONFLICT,
        412: CONFLICT,
        502: UNREACHABLE,
        503: UNREACHABLE,
        504: UNREACHABLE,
    }
    return USAGE if problem.code in _MISTYPED else by_status.get(problem.status, FAILED)
