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
        self.facts = {name: _tellable(value) for name, value in facts.items()}
        super().__init__(self.message.format(**self.facts))

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


def _tellable(fact: Any) -> Any:
    """Return text as UTF-8 can hold it: a file may have any bytes for a name, and errors must be tellable."""
    if isinstance(fact, str):
        return fact.encode("utf-8", "backslashreplace").decode()
    return [_tellable(one) for one in fact] if isinstance(fact, list) else fact


class InternalError(Error):
    """Something went wrong that nobody foresaw."""


class InvalidRequest(Error):
    """The request does not have the form that the route declares."""

    status, code = 400, "invalid-request"
    message = "{where}: {reason}; nothing was touched. See /docs for what this route takes"


class Unauthorized(Error):
    """No credential, or none that is known."""

    status, code = 401, "unauthorized"
    message = (
        "This needs a credential that is known, has not expired and was not revoked: send Authorization: Bearer TOKEN"
    )


class Forbidden(Error):
    """The credential is known, and its role does not allow this."""

    status, code = 403, "forbidden"
    message = "This needs the role {needed}, and {name} has the role {role}; nothing was touched"


class RouteNotFound(Error):
    """No route has this path."""

    status, code, message = 404, "route-not-found", "There is no {path} here; see /docs"


class MethodNotAllowed(Error):
    """The path exists and does not take this method."""

    status, code, message = 405, "method-not-allowed", "{path} takes {allowed}, not {method}"


class PreconditionFailed(Error):
    """The thing was changed since the version that the caller saw."""

    status, code = 412, "precondition-failed"
    message = "{what} is at version {found}, not {expected}; nothing was touched. Read it again"


class BodyTooLarge(Error):
    """The request's body is above the limit of this route."""

    status, code, message = 413, "body-too-large", "The body has more than {limit_bytes} bytes; nothing was touched"


class UnsupportedMediaType(Error):
    """The body is of a type that the route does not read."""

    status, code = 415, "unsupported-media-type"
    message = "The body is {found}; this route reads {expected}. Nothing was touched"


class RequestRefused(Error):
    """The HTTP layer refused the request."""

    status, code, message = 400, "request-refused", "The request was refused: {reason}; nothing was touched"


class SettingsError(Error):
    """The configuration cannot be used; the daemon does not start."""

    code, message = "settings", "{where}: {reason}"


class ListenRefused(Error):
    """The daemon must not, or cannot, listen where it was told to."""

    code, message = "listen-refused", "listen = {listen}: {reason}"
