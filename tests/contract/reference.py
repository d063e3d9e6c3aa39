"""Builds the parts of docs/reference.md that follow from the code: ``python -m tests.contract.reference`` renews it.

Everything is read from the source and from types, so nothing needs to be wired up. What code cannot say (what an
event means) stays hand-written between the generated parts; test_reference.py holds that nothing is left out.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import msgspec
import typer
import typer.main

import agent.errors
import agent.web.errors
import controller.cli.errors
import controller.errors
from agent import config as agent_config
from agent.web.errors import Error
from agent.web.routes import Route
from controller import commands as controller_commands
from controller import config as controller_config
from controller.cli import app as cli

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference.md"
_COMMENT = re.compile(r"^    # ?(.*)$")
_FIELD = re.compile(r"^    (\w+): ")


def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def first_line(doc: str | None) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join((inspect.cleandoc(doc or "").split("\n\n")[0]).split())


def errors(module: ModuleType) -> list[type[Error]]:
    """Return the error classes that a module declares and that have a code of their own."""
    found = [one for one in vars(module).values() if inspect.isclass(one) and issubclass(one, Error)]
    home = module.__name__
    return [one for one in found if f"{one.__module__}.".startswith(f"{home}.") and "code" in vars(one)]


def error_table(*modules: ModuleType) -> str:
    """List error codes in alphabetical order."""
    every = {one.code: one for module in modules for one in errors(module)}
    rows = [(f"`{code}`", str(one.status), first_line(one.__doc__)) for code, one in sorted(every.items())]
    return table(("code", "status", "meaning"), rows)


def settings_table(module: ModuleType) -> str:
    """List the settings of a daemon with the reasons that stand beside them."""
    kind = vars(module)["Config"]
    comments: list[str] = []
    reasons: dict[str, str] = {}
    for line in inspect.getsource(kind).splitlines():
        if comment := _COMMENT.match(line):
            comments.append(comment[1])
        elif line.strip() and (named := _FIELD.match(line)):
            reasons[named[1]] = " ".join(comments)
            comments = []
    default = kind()
    rows = []
    for name in kind.__struct_fields__:
        value = getattr(default, name)
        shown = "not set" if value is None else f"`{msgspec.json.encode(value, enc_hook=str).decode()}`"
        rows.append((f"`{name}`", shown, reasons.get(name, "")))
    return table(("key", "default", "why"), rows)


def declared_routes(package: str) -> list[Route]:
    """Return the routes of every class in a package's api that has ``routes()``; their collaborators stay unused."""
    found: list[Route] = []
    for info in pkgutil.iter_modules([str(ROOT / package / "api")]):
        module = importlib.import_module(f"{package}.api.{info.name}")
        kinds: list[Any] = list(vars(module).values())
        for kind in kinds:
            if inspect.isclass(kind) and kind.__module__ == module.__name__ and hasattr(kind, "routes"):
                wanted = list(inspect.signature(kind).parameters)
                instance: Any = kind(*(MagicMock(name=one) for one in wanted))
                found += instance.routes()
    return found


def route_table(package: str) -> str:
    """List a daemon's routes, without those that every application has."""
    rows = [
        (one.method, f"`{one.path}`", one.role or "none needed", one.summary.rstrip("."))
        for one in sorted(declared_routes(package), key=lambda one: (one.path, one.method))
    ]
    return table(("method", "path", "role", "what it does"), rows)


def command_table(app: typer.Typer, name: str) -> str:
    """List every command of a typer application with its arguments and options."""
    rows: list[tuple[str, ...]] = []
    _commands(typer.main.get_command(app), name, rows)
    return table(("command", "what it does"), rows)


def _commands(command: object, path: str, rows: list[tuple[str, ...]]) -> None:
    children = getattr(command, "commands", None)
    if children:
        for name, child in children.items():
            _commands(child, f"{path} {name}", rows)
        return
    # Every setting is also an option of each daemon's commands; the page says so once.
    daemon = {"config", *agent_config.Config.__struct_fields__, *controller_config.Config.__struct_fields__}
    hidden = {"help", *(daemon if path.startswith("coldframe-") else ())}
    words = []
    for parameter in getattr(command, "params", []):
        if parameter.name in hidden or str(parameter.name).startswith("common_"):
            continue
        if parameter.param_type_name == "argument":
            metavar = parameter.metavar or str(parameter.name).upper()
            metavar += "..." if parameter.nargs == -1 else ""
            words.append(metavar if parameter.required else f"[{metavar}]")
        else:
            # Of a switch that is on, the way to turn it off is worth telling.
            names = parameter.secondary_opts if parameter.default is True else parameter.opts
            option = names[0] + ("" if parameter.is_flag else f" {parameter.metavar or 'VALUE'}")
            words.append(option if parameter.required else f"[{option}]")
    rows.append((f"`{' '.join([path, *words])}`", first_line(getattr(command, "help", ""))))


def agent_commands() -> typer.Typer:
    """Return the agent's commands."""
    from agent import __main__ as agent_main  # noqa: PLC0415 - only the commands need libvirt

    return agent_main.cli


def parts() -> dict[str, str]:
    """Return every generated part by the name that marks its place on the page."""
    return {
        "commands-coldframe": command_table(cli.app, "coldframe"),
        "commands-controller": command_table(controller_commands.app, "coldframe-controller"),
        "commands-agent": command_table(agent_commands(), "coldframe-agent"),
        "settings-agent": settings_table(agent_config),
        "settings-controller": settings_table(controller_config),
        "routes-controller": route_table("controller"),
        "routes-agent": route_table("agent"),
        "errors-both": error_table(agent.web.errors),
        "errors-controller": error_table(controller.errors),
        "errors-agent": error_table(agent.errors),
        "errors-coldframe": error_table(controller.cli.errors),
    }


def render(page: str) -> str:
    """Return the page with every generated part renewed. Raises ValueError where a part has no place."""
    for name, text in parts().items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"{PAGE.name} needs exactly one place for {name}")
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    return page


def main() -> None:
    """Renew the page."""
    page = PAGE.read_text(encoding="utf-8")
    renewed = render(page)
    PAGE.write_text(renewed, encoding="utf-8")
    sys.stdout.write("unchanged\n" if renewed == page else "renewed\n")


if __name__ == "__main__":
    main()
