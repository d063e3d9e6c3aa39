"""What the controller itself cannot take or do."""

from agent.web.errors import Error


class NameInvalid(Error):
    """A name breaks the rules for names."""

    status, code, message = 422, "name-invalid", "{kind} name {name!r} is refused: {reason}; nothing was changed"


class NotYetSupported(Error):
    """This version cannot do what was asked for."""

    status, code = 501, "not-yet-supported"
    message = "{what} is not supported by this version; nothing was changed. {instead}"


class ContentCorrupt(Error):
    """Stored bytes no longer have the hash they were stored under."""

    status, code = 500, "content-corrupt"
    message = (
        "The stored bytes {sha256} are damaged ({reason}) and were not used; restore the database, or take a new copy"
    )


class DatabaseFailed(Error):
    """The database refused to read or write."""

    status, code, message = (
        503,
        "database-failed",
        "The database failed: {reason}; what was begun was undone. Try again",
    )


class CommitUnconfirmed(DatabaseFailed):
    """The database was lost between the order to commit and the answer."""

    status, code = 503, "commit-unconfirmed"
    message = (
        "The connection to the database was lost while a change was committed: it was made as a whole, or not at all. "
        "Look before you try again"
    )


class DatabaseUnusable(DatabaseFailed):
    """The database cannot be opened."""

    status, code, message = 500, "database-unusable", "The database {url} cannot be used: {reason}"


class DatabaseTooNew(DatabaseFailed):
    """A newer controller has migrated this database."""

    status, code = 500, "database-too-new"
    message = (
        "The database holds migrations that this version does not know: {unknown}; nothing was changed. "
        "Install the version that made them, or restore a database from before"
    )
