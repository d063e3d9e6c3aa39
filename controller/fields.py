"""How the controller's tables hold times, UUIDs, JSON and words: the same as text in SQLite and in PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from peewee import Field

# peewee types its fields in a stub only: at run time they take no parameter.
if TYPE_CHECKING:
    AnyField = Field[Any]
else:
    AnyField = Field


class UuidField(AnyField):
    """A UUID as text."""

    field_type = "TEXT"

    def db_value(self, value: UUID | str | None) -> str | None:
        """Store lower-case with hyphens; a string that is no UUID is a ValueError."""
        return None if value is None else str(value if isinstance(value, UUID) else UUID(value))

    def python_value(self, value: str | None) -> UUID | None:
        """Read as UUID."""
        return None if value is None else UUID(value)


class TimeField(AnyField):
    """A moment in UTC as text of fixed width, which sorts by time."""

    field_type = "TEXT"

    def db_value(self, value: datetime | None) -> str | None:
        """Store in UTC; a naive time is taken as a mistake of the caller."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def python_value(self, value: str | None) -> datetime | None:
        """Read as an aware time in UTC."""
        return None if value is None else datetime.fromisoformat(value)


class JsonField(AnyField):
    """Anything that msgspec can write, as JSON text; it is read back as plain lists and dicts.

    What JSON does not know (a path among an error's facts) becomes text: an operation must be able to end.
    """

    field_type = "TEXT"

    def db_value(self, value: Any) -> str | None:
        """Store as JSON; null is the database's NULL."""
        return None if value is None else msgspec.json.encode(value, enc_hook=str).decode()

    def python_value(self, value: str | None) -> Any:
        """Read as plain Python values."""
        return None if value is None else msgspec.json.decode(value)


class WordField(AnyField):
    """One of a fixed set of words, typed as such."""

    field_type = "TEXT"
