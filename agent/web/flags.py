"""Command-line flags for every setting: ``--state-dir`` for ``state_dir``, and ``--config`` for the file."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

Command = Callable[..., None]


def with_flags(kind: type[msgspec.Struct]) -> Callable[[Command], Command]:
    """Give a typer command one option for each setting of ``kind``, and ``--config``.

    The command takes ``config: Path | None`` and ``flags: dict[str, str | None]``, as settings.load() does, beside
    options of its own. A list is written with commas or as a TOML array.
    """
    names = [one.name for one in msgspec.structs.fields(kind)]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            flags = {name: given.pop(name) for name in names}
            command(**given, flags=flags)

        own = [one for name, one in inspect.signature(command).parameters.items() if name not in {"config", "flags"}]
        added = [_option("config", Path, "Read this file in place of the default one"), *(map(_setting, names))]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + added
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # read by typer
        wrapped.__annotations__ = {one.name: one.annotation for one in parameters}
        return wrapped

    return decorate


def _setting(name: str) -> inspect.Parameter:
    return _option(name, str, f"Override {name}")


def _option(name: str, kind: type, text: str) -> inspect.Parameter:
    option = typer.Option(f"--{name.replace('_', '-')}", help=text, show_default=False)
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type] # made for typer, at run time
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
