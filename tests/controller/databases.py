"""Where a test's databases come from: files of its own, or the session's PostgreSQL."""

import shutil
from pathlib import Path
from typing import Protocol

import psycopg

from tests.lab.postgresql import Postgresql


class Databases(Protocol):
    """Makes databases, named by the address that a controller takes. Those of a test are gone after it."""

    def new(self) -> str:
        """Return the address of one that nobody has used."""

    def copy(self, url: str) -> str:
        """Return the address of a new one that holds what this one does, to which nobody is connected."""

    def drop(self, url: str) -> None:
        """Remove one to which nobody is connected."""

    def hurry(self, url: str) -> str | None:
        """Return the statement after which nothing waits for the disk: no database outlives its test."""


class SqliteFiles:
    """SQLite's, in a directory; the first is ``controller.db``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._made = 0

    def new(self) -> str:
        self._made += 1
        return f"sqlite:///{self.directory}/controller{self._made if self._made > 1 else ''}.db"

    def copy(self, url: str) -> str:
        made = self.new()
        shutil.copyfile(path_of(url), path_of(made))
        return made

    def drop(self, url: str) -> None:
        path_of(url).unlink()

    def hurry(self, url: str) -> str | None:
        del url
        return "PRAGMA synchronous = off"


class OnServer:
    """Databases of a server."""

    def __init__(self, server: Postgresql) -> None:
        self.server = server
        self._taken: list[str] = []
        self._made: list[str] = []

    def new(self) -> str:
        self._taken.append(self.server.take())
        return self.server.url(self._taken[-1])

    def copy(self, url: str) -> str:
        self._made.append(self.server.create(name_of(url)))
        return self.server.url(self._made[-1])

    def drop(self, url: str) -> None:
        self.server.drop(name_of(url))
        self._made.remove(name_of(url))

    def hurry(self, url: str) -> str | None:
        del url
        return None

    def close(self) -> None:
        """Have none of them for the next test."""
        for name in self._made:
            self.server.drop(name)
        for name in self._taken:
            self.server.give_back(name)


def path_of(url: str) -> Path:
    """Return the file of a SQLite database."""
    return Path(url.removeprefix("sqlite:///"))


def name_of(url: str) -> str:
    """Return the name of a server's database."""
    return str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])
