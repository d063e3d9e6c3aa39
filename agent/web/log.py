"""Log lines as facts: ``key=value`` on stderr, with the request and the piece of work they belong to."""

import json
import logging
import re
import sys
import time
from contextvars import ContextVar
from typing import Any, TextIO

from agent.web import out_of_memory

#: Set by the request middleware, and by whoever runs a piece of work in the background.
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
WORK_ID: ContextVar[str | None] = ContextVar("work_id", default=None)

_PLAIN = re.compile(r"[^\s\"'=\x00-\x1f\x7f\\]+")


class Facts:
    """A log message made of an event's name and its facts; rendered only when the line is written."""

    def __init__(self, event: str, facts: dict[str, Any]) -> None:
        self.event = event
        self.facts = facts

    def __str__(self) -> str:
        return render({"event": self.event, **self.facts})


def kv(event: str, **facts: Any) -> Facts:
    """Return a message for ``logger.info(kv("listening", url=url))``. Never give it a secret."""
    return Facts(event, facts)


def render(facts: dict[str, Any]) -> str:
    """Return ``key=value`` pairs; a value with a space, quote or control character is written as a JSON string."""
    return " ".join(f"{key}={_value(value)}" for key, value in facts.items() if value is not None)


def _value(value: Any) -> str:
    text = "true" if value is True else "false" if value is False else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


#: What every record has; anything else came in through ``extra=`` and is a fact.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class KeyValueFormatter(logging.Formatter):
    """One line a record: time (UTC), level, logger, event or message, facts, request and work ids, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback becomes one quoted value, so that a line stays a line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = {"time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower(), "logger": record.name}
        body = str(record.msg) if isinstance(record.msg, Facts) else render({"msg": record.getMessage()})
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        tail = {**extra, "request": REQUEST_ID.get(), "work": WORK_ID.get()}
        if record.exc_info:
            tail["exception"] = self.formatException(record.exc_info)
        return " ".join(part for part in (render(head), body, render(tail)) if part)


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes lines to stderr; ends the process where one tells that memory ran out or cannot be written for that."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write it."""
        super().emit(record)
        out_of_memory.end_if(record.exc_info[1] if record.exc_info else None)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Look at why a line could not be written."""
        out_of_memory.end_if(sys.exc_info()[1])
        super().handleError(record)


def configure(level: str = "info") -> None:
    """Send every record of this process to stderr as key=value lines; it ends when it runs out of memory."""
    out_of_memory.watch()
    handler = StderrHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
