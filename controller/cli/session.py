"""What every command has: the options that say where, who and how, a client, and two consoles."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import msgspec
import typer
from rich.console import Console

from agent.web.auth import read_secret_file
from agent.web.errors import Error
from agent.wire.plan import Plan
from agent.wire.problem import Problem
from controller.cli.client import Client, PlanMade
from controller.cli.errors import SUCCESS, exit_status
from controller.cli.plan import print_plan

DEFAULT_URL = "http://127.0.0.1:7700"

UrlOption = Annotated[
    str | None, typer.Option("--url", help="The controller's address [env: COLDFRAME_URL].", metavar="URL")
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option("--token-file", help="A file with an API token [env: COLDFRAME_TOKEN_FILE].", metavar="FILE"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Print the operation; do not wait for its end.")]
#: Where nothing is waited for it is accepted and has no effect, so that a script may give it to every command.
UnusedNoWaitOption = Annotated[bool, typer.Option("--no-wait", hidden=True)]

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and refused; change nothing.")]


@dataclass(frozen=True)
class Options:
    """The options that every command takes, before or after its name; the later one counts."""

    url: str | None = None
    token_file: Path | None = None
    as_json: bool = False
    no_wait: bool = False
    dry_run: bool = False

    def over(self, earlier: "Options") -> "Options":
        """Return these options, with those that are not given taken from ``earlier``."""
        return Options(**{one.name: getattr(self, one.name) or getattr(earlier, one.name) for one in fields(self)})


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that takes text as it is: no markup, no emoji, no colours for numbers.

    Without a terminal lines are as long as they need to be, so that a script sees one line for each thing.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 10_000
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True, width=width)


class Session:
    """One run of a command."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.out = plain_console()
        self.err = plain_console(stderr=True)
        self._client: Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.__exit__(kind, error, trace)

    @property
    def client(self) -> Client:
        """The controller's API, reached at the first use. Raises SettingsError for an unusable token file."""
        if self._client is None:
            url = self.options.url or os.environ.get("COLDFRAME_URL") or DEFAULT_URL
            token_file = self._token_file()
            secret = read_secret_file(token_file) if token_file else None
            self._client = Client(url, secret, dry_run=self.options.dry_run)
        return self._client

    def _token_file(self) -> Path | None:
        named = self.options.token_file or os.environ.get("COLDFRAME_TOKEN_FILE")
        return Path(named) if named else None

    def show(self, document: Any, human: Callable[[], None]) -> None:
        """Print the document with ``--json``, else call ``human``."""
        if self.options.as_json:
            print_json(document)
        else:
            human()

    def show_plan(self, plan: Plan) -> int:
        """Print a plan and return the exit status that the call itself would come to."""
        self.show(plan, lambda: print_plan(self.out, plan))
        return exit_status(plan.refusals[0]) if plan.refusals else SUCCESS

    def fail(self, problem: Problem) -> int:
        """Tell the failure and return the exit status for it."""
        if self.options.as_json:
            print_json(problem)
        else:
            self.err.print(f"Error: {problem.detail}", style="red")
            if problem.status == 401:
                file = self._token_file()
                refused = f"The token in {file} was refused; give another with --token-file"
                self.err.print(refused if file else "Say who you are with --token-file or COLDFRAME_TOKEN_FILE")
        return exit_status(problem)


def print_json(document: Any) -> None:
    """Print one JSON document; a list becomes ``{"items": [...]}``."""
    if isinstance(document, list):
        document = {"items": document}
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document, enc_hook=str), indent=2).decode() + "\n")
    sys.stdout.flush()


def command(
    app: typer.Typer, name: str, *, waits: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register ``function(session, ...)`` as a command that also takes the options of every command.

    ``waits``: it starts an operation, so its help shows ``--no-wait``.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(
            context: typer.Context,
            *,
            common_url: str | None,
            common_token_file: Path | None,
            common_json: bool,
            common_no_wait: bool,
            common_dry_run: bool,
            **arguments: Any,
        ) -> None:
            given = Options(common_url, common_token_file, common_json, common_no_wait, common_dry_run)
            options = given.over(context.obj)
            with Session(options) as session:
                try:
                    function(session, **arguments)
                except PlanMade as made:
                    raise typer.Exit(session.show_plan(made.plan)) from made
                except Error as err:
                    raise typer.Exit(session.fail(err.problem())) from err

        signature = _signature(function, waits=waits)
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
        app.command(name)(run)
        return function

    return register


def _signature(function: Callable[..., None], *, waits: bool) -> inspect.Signature:
    """Return the signature that typer is to see: the function's, with the common options for its session."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = list(inspect.signature(function).parameters.values())[1:]
    common = [
        inspect.Parameter("common_url", keyword, default=None, annotation=UrlOption),
        inspect.Parameter("common_token_file", keyword, default=None, annotation=TokenFileOption),
        inspect.Parameter("common_json", keyword, default=False, annotation=JsonOption),
        inspect.Parameter(
            "common_no_wait", keyword, default=False, annotation=NoWaitOption if waits else UnusedNoWaitOption
        ),
        inspect.Parameter("common_dry_run", keyword, default=False, annotation=DryRunOption),
    ]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    return inspect.Signature([context, *(one.replace(kind=keyword) for one in own), *common])
