"""The command line as a whole: sub-commands, global options, and how a failure ends."""

import io
import logging
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from agent.web.errors import InternalError
from agent.wire.problem import Problem
from controller.cli import (
    backup,
    doctor,
    events,
    host,
    operation,
    retention,
    snapshot,
    snapshot_archive,
    snapshot_edit,
    snapshot_verify,
    token,
    vm,
)
from controller.cli.errors import FAILED, INTERRUPTED, USAGE
from controller.cli.session import (
    DryRunOption,
    JsonOption,
    Options,
    TokenFileOption,
    UnusedNoWaitOption,
    UrlOption,
    command,
    print_json,
)

NAME = "coldframe"

app = typer.Typer(name=NAME, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
for module in (host, vm, snapshot, retention, backup, operation, token):
    app.add_typer(module.app, name=module.__name__.rpartition(".")[2])
for more in (snapshot_edit.edit, snapshot_edit.protect, snapshot_edit.unprotect):
    command(snapshot.app, more.__name__)(more)
command(snapshot.app, "export")(snapshot_archive.export)
command(snapshot.app, "import", waits=True)(snapshot_archive.import_)
command(snapshot.app, "verify", waits=True)(snapshot_verify.verify)
command(app, "events")(events.events)
command(app, "doctor", waits=True)(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{NAME} {metadata.version('coldframe')}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    *,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
    no_wait: UnusedNoWaitOption = False,
    dry_run: DryRunOption = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Whole offline snapshots of virtual machines: disks, UEFI NVRAM and TPM state as one.

    Exit status: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 unreachable.
    """
    context.obj = Options(url, Path(token_file) if token_file else None, as_json, no_wait, dry_run)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status. Nothing escapes as a traceback."""
    # Names may hold what the terminal cannot show; a question mark is better than no answer.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    as_json = "--json" in arguments
    try:
        status = app(args=list(arguments), prog_name=NAME, standalone_mode=False)
    except TyperException as err:
        return _usage(err, as_json=as_json)
    except (Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away, as in `coldframe vm list | head -1`; Python must not try to flush once more.
        sys.stdout = io.StringIO()
        return FAILED
    except Exception:  # the root of the command: a defect becomes a message, not a traceback for a script to read
        logging.getLogger(NAME).exception("This is a defect in coldframe; please report it with these lines")
        if as_json:
            print_json(InternalError().problem())
        return FAILED
    return status if isinstance(status, int) else 0


def _usage(err: TyperException, *, as_json: bool) -> int:
    """Tell what was wrong with the command line."""
    message = err.format_message()
    if as_json:
        detail = message or "The command line is not complete; see --help"
        print_json(Problem(title="The command line is wrong.", status=400, code="usage", detail=detail))
    elif message.startswith("Usage:"):  # a group without a sub-command: its help
        sys.stderr.write(f"{message}\n")
    elif message:
        context = getattr(err, "ctx", None)
        where = context.command_path if context else NAME
        sys.stderr.write(f"Error: {message}\nSee: {where} --help\n")
    return USAGE
