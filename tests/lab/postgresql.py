"""A private PostgreSQL server, whose processes tests may kill, stop and let go on.

It runs as ``nobody`` in a PID namespace that ends with this process, however that ends, and takes its files with it.
It must survive no power cut, so it never waits for the disk.
"""

import re
import secrets
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, Signals
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql

from tests.lab.daemons import free_port
from tests.lab.errors import LabError
from tests.lab.namespace import Namespace, Process
from tests.lab.waiting import wait_until

ROLE = "coldframe"
#: Where distributions that keep several versions side by side put them: Debian; the PostgreSQL project's RPMs.
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")
_AS_NOBODY = ("setpriv", "--reuid", "nobody", "--regid", "65534", "--clear-groups", "--no-new-privs")
_FAST = ("fsync=off", "full_page_writes=off", "max_connections=30", "shared_buffers=16MB", "autovacuum=off")
_NUMBERS = count(1)
#: Tables whose rows are made with them.
_OF_MIGRATIONS = ("schema_migration", "identity")


def installed() -> Path | None:
    """Return the directory of the newest server that is installed."""
    found = [one for place in _PLACES for one in Path("/").glob(f"{place[1:]}/initdb")]
    if found:
        return max(found, key=lambda one: int(re.sub(r"\D", "", one.parent.parent.name) or 0)).parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


class Postgresql:
    """One server. A context manager; its databases are made afresh for each test and live as long as the server.

    ``settings`` go into its configuration. With ``network`` it has one of its own, and TCP reaches it from inside only.
    """

    def __init__(self, *, network: bool = False, **settings: Any) -> None:
        programs = installed()
        if programs is None:
            raise LabError("PostgreSQL's server is not installed; package: postgresql (postgresql-server)")
        self.programs, self.settings = programs, settings
        self.password = secrets.token_urlsafe(12)
        self.root = Path(tempfile.mkdtemp(prefix="coldframe-postgresql-"))
        self.namespace = Namespace("postgresql", self.root, network=network, temporary=True)
        self.port = free_port()
        self._postmaster: Process | None = None
        self._free: list[str] = []
        self._tables = 0

    def __enter__(self) -> Self:
        self.namespace.open()
        try:
            self._make()
            self.start()
        except BaseException:
            self.namespace.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.namespace.close()
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def data(self) -> Path:
        """The data directory; the unix socket is beside it."""
        return self.root / "server" / "data"

    def _make(self) -> None:
        home = self.data.parent
        home.mkdir(mode=0o711)
        shutil.chown(home, "nobody")
        (home / "password").write_text(self.password)
        words: list[str | Path] = [
            self.programs / "initdb",
            "-D",
            self.data,
            "-U",
            ROLE,
            "--pwfile",
            home / "password",
            "--no-sync",
        ]
        words += ["--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"]
        if self._version() >= 15:  # an order of words that is not that of their bytes, as most servers have
            words += ["--locale-provider=icu", "--icu-locale=en-US"]
        self.namespace.run([*_AS_NOBODY, *words])

    def _version(self) -> int:
        told = subprocess.run([self.programs / "initdb", "--version"], capture_output=True, text=True, check=True)
        return int(re.sub(r"\D.*", "", told.stdout.split()[-1]))

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        settings = [*_FAST, f"port={self.port}", f"unix_socket_directories={self.data.parent}"]
        settings += [f"{name}={value}" for name, value in self.settings.items()]
        words: list[str | Path] = [self.programs / "postgres", "-D", self.data]
        words += [word for one in settings for word in ("-c", one)]
        self._postmaster = self.namespace.spawn("postgresql", [*_AS_NOBODY, *words])
        wait_until("a PostgreSQL that takes connections", self._answers, 30)

    def _answers(self) -> bool:
        if self._postmaster is None or not self._postmaster.alive():
            raise LabError(f"PostgreSQL ended:\n{self._postmaster.log.read_text() if self._postmaster else ''}")
        try:
            self.admin("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Stop it; its clients are cut off."""
        self._end(SIGINT)

    def kill(self) -> None:
        """Kill all its processes, as a power cut would."""
        self.send(SIGKILL, *self.processes())
        self._end(SIGKILL)

    def _end(self, number: Signals) -> None:
        if self._postmaster is not None:
            self._postmaster.end(number)
        wait_until("the end of PostgreSQL's processes", lambda: not self.processes(), 20)

    def freeze(self) -> None:
        """Stop all its processes where they are: the kernel still takes what is sent to them."""
        self.send(SIGSTOP, *self.processes())

    def thaw(self) -> None:
        """Let all its processes go on."""
        self.send(SIGCONT, *self.processes())

    def send(self, number: Signals, *pids: int) -> None:
        """Send processes a signal; those that have ended are left alone."""
        words = ["sh", "-c", 'name=$1; shift; kill -s "$name" "$@"', "sh", number.name.removeprefix("SIG")]
        self.namespace.run([*words, *map(str, pids)], check=False)

    def processes(self) -> list[int]:
        """Return the numbers of its processes, as it knows them."""
        found = []
        for status in Path(f"/proc/{self.namespace.pid}/root/proc").glob("[0-9]*/comm"):
            try:
                found += [int(status.parent.name)] if status.read_text().startswith("postgres") else []
            except OSError:  # it has ended meanwhile
                continue
        return found

    def url(self, name: str, *, port: int | None = None) -> str:
        """Return the address of a database, by its socket, or by TCP at a port."""
        if port is None:
            return f"postgresql://{ROLE}@/{name}?host={self.data.parent}&port={self.port}"
        return f"postgresql://{ROLE}:{self.password}@127.0.0.1:{port}/{name}"

    def admin(self, statement: str, *names: str, on: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement, with names in the place of ``{}``; return its rows."""
        with psycopg.connect(self.url(on), autocommit=True) as connection:
            cursor = connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
            return cursor.fetchall() if cursor.description else []

    def create(self, template: str = "template1") -> str:
        """Make a database like another one, to which nobody is connected; return its name."""
        name = f"d{next(_NUMBERS)}"
        self.admin("CREATE DATABASE {} TEMPLATE {}", name, template)
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever is connected."""
        self.admin("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def take(self) -> str:
        """Return a database without rows: a new one, or one that was given back, whose tables are there."""
        return self._free.pop() if self._free else self.create()

    def give_back(self, name: str) -> None:
        """Remove all rows that were added, which takes a tenth of the time of a new database."""
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")  # foreign keys do not matter
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            for (table,) in tables:
                if table not in _OF_MIGRATIONS:
                    connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
            connection.execute("SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'")
        if tables and len(tables) == (self._tables or len(tables)):
            self._tables = len(tables)
            self._free.append(name)
        else:  # the test has taken it apart
            self.drop(name)

    def backends(self, name: str) -> list[int]:
        """Return the processes that serve a database."""
        rows = self.admin("SELECT pid, datname FROM pg_stat_activity WHERE backend_type = 'client backend'")
        return [pid for pid, database in rows if database == name]
