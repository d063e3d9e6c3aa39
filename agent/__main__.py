"""The command ``coldframe-agent``."""

import asyncio
import importlib.util
import os
import sys
from collections.abc import Awaitable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer

from agent import app as agent_app
from agent import checks, config, operate
from agent.facts import VERSION
from agent.web import log, out_of_memory
from agent.web.errors import Error, SettingsError
from agent.web.flags import with_flags
from agent.web.settings import Loaded, show
from agent.wire.plan import Plan
from agent.wire.transaction import Transaction

T = TypeVar("T")
FAILED, USAGE = 1, 2
Flags = dict[str, str | None]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and refused; change nothing")]
VmName = Annotated[str, typer.Argument(metavar="VM", help="Name or UUID")]

cli = typer.Typer(
    name="coldframe-agent",
    help=(
        "Coldframe's agent: one daemon on each KVM host.\n\n"
        "Exit status: 0 done, 1 failed, 2 wrong command line or settings."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command. Exits 0, 1 on an error, 2 on a wrong command line or wrong settings."""
    cli()


@cli.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit")] = False,
) -> None:
    if version:
        typer.echo(f"coldframe-agent {VERSION}")
        raise typer.Exit


@cli.command()
@with_flags(config.Config)
def serve(config: Path | None, flags: Flags) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    loaded = _load(config, flags)
    log.configure(loaded.settings.log_level)
    _run(agent_app.serve(loaded.settings))


@cli.command()
@with_flags(config.Config)
def check(config: Path | None, flags: Flags, as_json: AsJson = False) -> None:
    """Look at everything the agent needs; print a line for each and exit 1 where something is wrong."""
    findings = _run(checks.run(_load(config, flags).settings))
    if as_json:
        _print_json({"items": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            typer.echo(f"{'ok' if finding.ok else 'problem':8} {finding.name}: {finding.detail}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@cli.command("show-config")
@with_flags(config.Config)
def show_config(config: Path | None, flags: Flags) -> None:
    """Print the settings in force as TOML, and where each comes from."""
    typer.echo(show(_load(config, flags)), nl=False)


@cli.command()
@with_flags(config.Config)
def transactions(config: Path | None, flags: Flags, as_json: AsJson = False) -> None:
    """List the transactions under way and those that ended within the last days."""
    found = _run(operate.transactions(_load(config, flags).settings))
    if as_json:
        _print_json({"items": found, "next": None})
    else:
        typer.echo("\n".join(transaction_lines(found)))


@cli.command()
@with_flags(config.Config)
def release(vm: VmName, config: Path | None, flags: Flags, dry_run: DryRun = False) -> None:
    """Let a VM start again: undo what is prepared for it, or remove a guard that was left behind."""
    if dry_run:
        _show_plan(_run(operate.plan(_load(config, flags).settings, "release", vm)))
        return
    typer.echo(_run(operate.release(_load(config, flags).settings, vm)))


@cli.command("accept-blank")
@with_flags(config.Config)
def accept_blank(vm: VmName, config: Path | None, flags: Flags, dry_run: DryRun = False) -> None:
    """Let a VM's next start through although its NVRAM or TPM state is missing or empty."""
    if dry_run:
        _show_plan(_run(operate.plan(_load(config, flags).settings, "accept-blank", vm)))
        return
    typer.echo(_run(operate.accept_blank(_load(config, flags).settings, vm)))


@cli.command("forget-controller")
@with_flags(config.Config)
def forget_controller(config: Path | None, flags: Flags, dry_run: DryRun = False) -> None:
    """Let another controller work with this host: the next one that changes anything here has it."""

    async def work() -> str:
        settings = _load(config, flags).settings
        return await asyncio.to_thread(operate.forget_controller, settings, dry_run=dry_run)

    typer.echo(_run(work()))


def _load(file: Path | None, flags: dict[str, Any]) -> Loaded[config.Config]:
    _refuse_foreign_package()
    try:
        return config.load(file, os.environ, flags)
    except Error as err:
        _fail(str(err), USAGE if isinstance(err, SettingsError) else FAILED)


def _refuse_foreign_package() -> None:
    """Refuse to run with somebody else's ``agent`` package: the name is common, and a stray PYTHONPATH is enough."""
    spec = importlib.util.find_spec("agent.wire.transaction")
    ours = Path(__file__).parent
    if spec is None or spec.origin is None or Path(spec.origin).parents[1] != ours:
        _fail(f"another package called agent is in the way of {ours}; look at PYTHONPATH")


def _run(work: Awaitable[T]) -> T:
    async def run() -> T:
        return await work

    try:
        return out_of_memory.run(run())
    except Error as err:
        _fail(str(err), USAGE if isinstance(err, SettingsError) else FAILED)


def _fail(reason: str, status: int = FAILED) -> NoReturn:
    typer.echo(f"coldframe-agent: {reason}", err=True)
    raise typer.Exit(status)


def _show_plan(plan: Plan) -> None:
    """Print a plan; exit 1 where the command itself would be refused."""
    lines = [f"would {step.name}" for step in plan.steps] + plan.notes
    typer.echo("\n".join([*lines, *(f"would be refused: {one.detail}" for one in plan.refusals)]))
    if plan.refusals:
        raise typer.Exit(FAILED)


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def transaction_lines(found: list[Transaction]) -> Iterator[str]:
    """Yield aligned lines, never cut: the ids are what one needs next, and a terminal can wrap."""
    rows = [("id", "kind", "vm", "state", "started", "lease or end", "error")]
    for one in found:
        until = one.ended_at or one.lease_expires_at
        error = "" if one.error is None else one.error.code
        rows.append((str(one.id), one.kind, str(one.vm), one.state, _when(one.started_at), _when(until), error))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _when(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


if __name__ == "__main__":
    main()
