"""The commands of ``coldframe-controller``."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from typer.exceptions import TyperException

from agent.web import log, out_of_memory, settings
from agent.web.auth import read_secret_file
from agent.web.errors import Error, SettingsError
from agent.web.flags import with_flags
from agent.web.serving import tls_context
from agent.wire.access import Role
from controller import config

T = TypeVar("T")

NAME = "coldframe-controller"
FAILED, USAGE = 1, 2

app = typer.Typer(
    name=NAME, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
)
token = typer.Typer(help="API tokens, without the daemon.", no_args_is_help=True)
app.add_typer(token, name="token")

Flags = dict[str, str | None]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]


def _load(file: Path | None, flags: Flags) -> settings.Loaded[config.Config]:
    return config.load(file, os.environ, flags)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{NAME} {metadata.version('coldframe')}")
        raise typer.Exit


@app.callback()
def common(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Coldframe's controller: records, orchestration and the API of all hosts.

    Exit status: 0 done, 1 failed, 2 wrong command line or settings.
    """


@app.command()
@with_flags(config.Config)
def serve(config: Path | None, flags: Flags) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    from controller.app import serve as daemon  # noqa: PLC0415 - the other commands need none of it

    found = _load(config, flags).settings
    log.configure(found.log_level)
    out_of_memory.run(daemon(found))


@app.command()
@with_flags(config.Config)
def migrate(config: Path | None, flags: Flags, dry_run: DryRun = False) -> None:
    """Create the database or bring it up to date; the daemon does the same when it starts."""
    if dry_run:
        missing = _without_trace(_load(config, flags).settings.database, lambda: None)
        typer.echo(f"Would apply: {', '.join(missing)}" if missing else "The database is up to date")
        return
    applied, _ = asyncio.run(_with_database(_load(config, flags).settings.database, lambda: None))
    typer.echo(f"Applied: {', '.join(applied)}" if applied else "The database is up to date")


@app.command()
@with_flags(config.Config)
def check(config: Path | None, flags: Flags) -> None:
    """Check settings, secrets, TLS files and the database's place; nothing is opened for writing."""
    found = _load(config, flags).settings
    if found.token_file is not None:
        read_secret_file(found.token_file)
    if found.tls is not None:
        tls_context(found.tls)
    if found.database.startswith("sqlite:///"):
        place = Path(found.database.removeprefix("sqlite:///")).absolute()
        if not place.parent.is_dir():
            raise SettingsError(where="database", reason=f"there is no directory {place.parent}; see: make install")
        if not os.access(place if place.exists() else place.parent, os.W_OK):
            raise SettingsError(where="database", reason=f"{place} cannot be written by this user")
    typer.echo("The settings can be used")


@app.command("show-config")
@with_flags(config.Config)
def show_config(config: Path | None, flags: Flags) -> None:
    """Print the settings in force, and where each comes from; secrets as ***."""
    typer.echo(settings.show(_load(config, flags)), nl=False)


@token.callback()
def token_group() -> None:
    """API tokens, without the daemon: how the first one is made."""


@token.command("create")
@with_flags(config.Config)
def token_create(  # noqa: PLR0917 - one parameter for each option of the command
    config: Path | None,
    flags: Flags,
    role: Annotated[Role, typer.Option(help="What it may do.")],
    name: Annotated[str | None, typer.Option(help="Who will use it; a name with the time is the default.")] = None,
    expires: Annotated[datetime | None, typer.Option(help="When it ends, in UTC; never is the default.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Make a token and print its secret, alone on standard output, this once."""
    from controller.store import tokens  # noqa: PLC0415 - loads the database's models

    name = name or f"{role}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    ends = expires.replace(tzinfo=UTC) if expires else None
    found = _load(config, flags).settings
    if dry_run:
        _without_trace(found.database, lambda: tokens.create(name, role, ends))
        typer.echo(f"Would make the token {name} with the role {role}")
        return
    _, made = asyncio.run(_with_database(found.database, lambda: tokens.create(name, role, ends)))
    typer.echo(made.secret)


async def _with_database(url: str, work: Callable[[], T]) -> tuple[list[str], T]:
    """Open the database, do the work, and return the migrations that were applied and what the work returned."""
    from controller.db import Database  # noqa: PLC0415 - see above

    database = Database(url)
    applied = await database.open()
    try:
        return applied, await database.run(work)
    finally:
        await database.close()


def _without_trace(url: str, work: Callable[[], object]) -> list[str]:
    """Say which migrations are missing, and do them and the work without anything coming of it."""
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        with tempfile.TemporaryDirectory() as directory:  # what would be made there can be made anywhere
            return asyncio.run(_with_database(f"sqlite:///{directory}/new.db", work))[0]
    return asyncio.run(_taken_back(url, work))


async def _taken_back(url: str, work: Callable[[], object]) -> list[str]:
    from controller.db import Database, migrate, take_back  # noqa: PLC0415 - see above

    database = Database(url)
    missing = await database.open(dry_run=True)
    try:
        await database.run(take_back, lambda: (migrate(), work()))
    finally:
        await database.close()
    return missing


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong command line or settings."""
    try:
        status = app(args=list(arguments), prog_name=NAME, standalone_mode=False)
    except Error as err:
        sys.stderr.write(f"Error: {err}\n")
        return USAGE if isinstance(err, SettingsError) else FAILED
    except TyperException as err:
        _tell_usage(err)
        return USAGE
    return status if isinstance(status, int) else 0


def _tell_usage(err: TyperException) -> None:
    """Say what was wrong with the command line; a command that is not complete shows its help."""
    message = err.format_message()
    if message.startswith("Usage:"):
        sys.stderr.write(f"{message}\n")
    else:
        context = getattr(err, "ctx", None)
        sys.stderr.write(f"Error: {message}\nSee: {context.command_path if context else NAME} --help\n")
