"""The points at which a fault can strike, read from the code: what there is, not what somebody wrote down.

Each is a name as ``agent.web.checkpoint`` is called with it, ids and texts of a run left out; a message is named after
the client's method. ``required()`` gives each with what to add when no test visits it.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from types import FrameType, FunctionType
from typing import Any, get_args

import agent.transactions.manager  # noqa: F401 - with it every kind of step has said how it is undone
from agent.client import AgentClient
from agent.transactions import asked, journal, model, step, steps
from controller import db
from controller.operations.kinds import KINDS
from tests.contract.sources import modules

_CLIENT_METHODS = frozenset(
    name
    for name, found in inspect.getmembers(AgentClient)
    if (inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found)) and not name.startswith("_")
) - {"close", "move"}  # which say nothing to the agent

_AGENT = "tests/agent/transactions/test_kill.py"
_CONTROLLER = "tests/controller/scenarios.py"


def required() -> dict[str, str]:
    """Return every point that a suite has to visit, with the way to do so."""
    points = {f"transaction {kind}": f"a story of its kind in {_AGENT}" for kind in asked.KINDS.values()}
    points |= {f"operation {kind}": f"a scenario of its kind in {_CONTROLLER}" for kind in KINDS}
    points |= {f"step {text}": f"a scenario that takes this step in {_CONTROLLER}" for text in operation_steps()}
    for name in ("raise-guard", "drop-guard", *(f"journal {record}" for record in journal_records())):
        points |= _both(name, f"a story that comes by it in {_AGENT}")
    for kind in transaction_steps():
        points |= _both(kind, f"a story whose plan has it in {_AGENT}")
    for kind in undone_steps():
        points |= _both(f"undo {kind}", f"a story that is aborted or fails after it in {_AGENT}")
    for work in commits():
        points |= _both(f"database {work}", f"a scenario or a chore that runs it in {_CONTROLLER}")
    for method in messages():
        points |= _both(f"message {method}", f"a scenario that calls it in {_CONTROLLER}")
    return points


def _both(name: str, remedy: str) -> dict[str, str]:
    return {f"before {name}": remedy, f"after {name}": remedy}


# The agent.


def journal_records() -> list[str]:
    """Return the kinds of the journal's records."""
    return [kind.__name__.lower() for kind in get_args(journal.Record)]


def transaction_steps() -> list[str]:
    """Return the kinds of the steps of a plan, as their names begin."""
    return [_beginning(kind) for kind in get_args(model.AnyStep)]


def undone_steps() -> list[str]:
    """Return the kinds of steps whose undoing does something."""
    bodies = {kind: ast.parse(inspect.getsource(fn)).body[0] for kind, fn in steps.undo.registry.items()}
    return [
        _beginning(kind)
        for kind, body in bodies.items()
        if kind in get_args(model.AnyStep) and isinstance(body, ast.AsyncFunctionDef) and not _says_only(body.body)
    ]


def _says_only(body: list[ast.stmt]) -> bool:
    """Tell whether a function has a docstring and does nothing."""
    return len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)


def _beginning(kind: type[step.Step]) -> str:
    """Return what the names of a class of steps have in common, such as ``rebase``; read from its ``name``."""
    text = inspect.getsource(kind.__dict__["name"].fget)
    found = re.search(r'return f?"([^"{]+)', text)
    if found is None:
        raise AssertionError(f"{kind.__name__}.name does not begin with a fixed word")
    return found[1].strip()


# The controller.


def operation_steps() -> set[str]:
    """Return the texts that operations announce as their steps; what is filled in is a ``*``."""
    return {
        _text(call.args[0])
        for _, tree in _controller("controller.operations")
        for call in _calls(tree, "step")
        if call.args and not isinstance(call.args[0], ast.Name)
    }


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    return str(ast.literal_eval(node))


def messages() -> set[str]:
    """Return the methods of the agent's client that the controller uses."""
    return {
        node.attr
        for _, tree in _controller("controller")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in _CLIENT_METHODS and _is_client(node.value)
    }


def _is_client(node: ast.expr) -> bool:
    named = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(named).split(".")[-1] == "client"


def commits() -> set[str]:
    """Return the functions that are handed to the database and commit, by the names of their points."""
    found = {db.name_of(db.migrate)}
    for module, tree in _controller("controller"):
        for within, node in _handed_over(tree, []):
            fn = _resolve(ast.unparse(node), vars(module))
            if isinstance(fn, FunctionType):
                found |= {db.name_of(fn)} if _writes(fn, set()) else set()
            elif isinstance(node, ast.Lambda) and _any_writes(node, vars(module), set()):
                place = "".join(f"{one}." for one in within)
                found.add(f"{module.__name__}.{place}<lambda>".removeprefix("controller."))
    return found


def _handed_over(tree: ast.AST, within: list[str]) -> Iterator[tuple[list[str], ast.expr]]:
    """Yield what runs on the database's thread, ``db.run(WORK, ...)`` or ``partial(db.run, WORK, ...)``, and where.

    What plans for a dry run commits nothing.
    """
    for node in ast.iter_child_nodes(tree):
        inner = within
        if isinstance(node, ast.AsyncFunctionDef) and node.name == "plan":
            continue
        if isinstance(node, ast.ClassDef):
            inner = [*within, node.name]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [*within, node.name, "<locals>"]
        elif isinstance(node, ast.Call) and node.args:
            if _is_run(node.func):
                yield within, node.args[0]
            elif len(node.args) > 1 and _is_run(node.args[0]):
                yield within, node.args[1]
        yield from _handed_over(node, inner)


def _is_run(node: ast.expr) -> bool:
    if not isinstance(node, ast.Attribute) or node.attr not in {"run", "owned"}:
        return False
    return node.attr == "owned" or ast.unparse(node.value).split(".")[-1] in {"db", "_db"}


def _writes(fn: Callable[..., Any], seen: set[object]) -> bool:
    """Tell whether a function, or one of the controller's that it calls, changes the database."""
    seen.add(fn)
    return _any_writes(ast.parse(textwrap.dedent(inspect.getsource(fn))), fn.__globals__, seen)


def _any_writes(tree: ast.AST, namespace: dict[str, Any], seen: set[object]) -> bool:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        found = _resolve(ast.unparse(call.func), namespace)
        if found is db.write:
            return True
        ours = isinstance(found, FunctionType) and found.__module__.startswith("controller.")
        if ours and found not in seen and _writes(found, seen):
            return True
    return False


def _resolve(dotted: str, namespace: dict[str, Any]) -> Any:
    """Return what a dotted name means in a module; None for what only a run knows."""
    first, *rest = dotted.split(".")
    found = namespace.get(first)
    for name in rest:
        found = getattr(found, name, None)
    return found


def _calls(tree: ast.AST, method: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
            yield node


def _controller(package: str) -> Iterator[tuple[Any, ast.AST]]:
    for name, _, tree in modules("controller"):
        if name.startswith(package) and not name.startswith(("controller.migrations", "controller.cli")):
            yield import_module(name), tree


# What a run passed.


def message_name() -> str | None:
    """Return the client's method that is at work up the stack of a checkpoint that was just called."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), AgentClient) and frame.f_code.co_name in _CLIENT_METHODS:
            return frame.f_code.co_name
        frame = frame.f_back
    return None


def named(point: str) -> str:
    """Name a point from inside the checkpoint that heard of it: a message after its method, others as they are."""
    when, _, rest = point.partition(" ")
    if re.match(r"[A-Z]+ /v1/", rest):
        return f"{when} message {message_name()}"
    return point


def matching(point: str) -> Iterator[str]:
    """Yield the required points that a point of a run is one of."""
    when, _, rest = point.partition(" ")
    if when == "step":
        for text in operation_steps():
            if re.fullmatch(re.escape(text).replace(r"\*", ".*"), rest):
                yield f"step {text}"
        return
    undo = "undo " if rest.startswith("undo ") else ""
    of = [kind for kind in transaction_steps() if f"{rest} ".startswith(f"{undo}{kind} ")]
    yield f"{when} {undo}{max(of, key=len)}" if of else point
