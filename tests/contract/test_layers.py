"""Who may import whom, and how large a piece may grow."""

import ast
import subprocess
import sys

import pytest

from tests.contract.sources import ROOT, imports, modules, within

MODULE_LIMIT, FUNCTION_LIMIT, USUAL_FUNCTION = 400, 60, 30
#: What a package of the agent may use of the agent, by the longest name that fits; see docs/developer.md.
MAY_IMPORT = {
    "agent.wire": ("agent.wire",),
    "agent.web": ("agent.web", "agent.wire"),
    "agent.client": ("agent.client", "agent.web", "agent.wire"),
    "agent.errors": ("agent.errors", "agent.web.errors", "agent.wire"),
    "agent.host": ("agent.host", "agent.errors", "agent.limits", "agent.wire", "agent.web.errors", "agent.web.log"),
    "agent.transactions": (
        "agent.transactions",
        "agent.host",
        "agent.errors",
        "agent.limits",
        "agent.wire",
        "agent.web.background",
        "agent.web.checkpoint",
        "agent.web.errors",
        "agent.web.log",
    ),
}


def rows(package: str) -> list[tuple[str, str]]:
    """Return (importer, imported) of a package, imports of ``agent`` only."""
    found = [(name, one) for name, _, tree in modules(package) for one in imports(tree) if within(one, "agent")]
    return [(name, one) for name, one in found if one != "agent"]


def test_the_controller_uses_only_wire_client_and_web_of_the_agent() -> None:
    allowed = ("agent.wire", "agent.client", "agent.web")
    assert [row for row in rows("controller") if not within(row[1], *allowed)] == []


def test_the_agent_knows_nothing_of_the_controller() -> None:
    assert [name for name, _, tree in modules("agent") if any(within(one, "controller") for one in imports(tree))] == []


def test_each_layer_of_the_agent_uses_only_those_below_it() -> None:
    wrong = []
    for importer, imported in rows("agent"):
        layer = next((one for one in MAY_IMPORT if within(importer, one)), None)
        if layer and not within(imported, *MAY_IMPORT[layer]):
            wrong.append((importer, imported))
    assert wrong == []


def test_wire_uses_the_standard_library_and_msgspec_only() -> None:
    allowed = {*sys.stdlib_module_names, "msgspec"}
    found = {one for name, _, tree in modules("agent") if within(name, "agent.wire") for one in imports(tree)}
    assert {one for one in found if one.split(".")[0] not in allowed and not within(one, "agent.wire")} == set()


def test_importing_wire_loads_nothing_heavy() -> None:
    names = [name for name, _, _ in modules("agent") if within(name, "agent.wire")]
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"aiohttp", "asyncio", "libvirt", "pyroute2", "peewee", "lxml", "cryptography", "rich", "typer", "ssl"}
    assert heavy & {name.split(".")[0] for name in loaded.stdout.split()} == set()


def test_the_plan_touches_nothing() -> None:
    (tree,) = [tree for name, _, tree in modules("agent") if name == "agent.transactions.plan"]
    outside = {"os", "subprocess", "shutil", "asyncio", "socket", "tempfile", "io", "libvirt", "aiohttp"}
    assert {one for one in imports(tree) if one.split(".")[0] in outside} == set()
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert "open" not in calls


def test_the_operators_command_loads_no_database() -> None:
    code = "import sys, controller.cli.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"peewee", "libvirt", "pyroute2"} & set(loaded.stdout.split()) == set()


@pytest.mark.parametrize("package", ["agent", "controller", "tests"])
def test_no_module_and_no_function_grows_too_long(package: str) -> None:
    long_modules, lengths = [], []
    for name, path, tree in modules(package):
        if len(path.read_text(encoding="utf-8").splitlines()) > MODULE_LIMIT:
            long_modules.append(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append((int(node.end_lineno or 0) - node.lineno + 1, f"{name}.{node.name}"))
    assert long_modules == []
    assert [row for row in lengths if row[0] > FUNCTION_LIMIT] == []
    assert sum(length <= USUAL_FUNCTION for length, _ in lengths) >= 0.9 * len(lengths)


def test_any_exception_is_caught_in_three_kinds_of_places_only() -> None:
    """The error middleware, the root of background work, a command's main; each says why on its line."""
    unexplained = []
    for _, path, _ in modules("agent", "controller"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if "except Exception" in line and "#" not in line:
                unexplained.append(f"{path.relative_to(ROOT)}:{number}")
    assert unexplained == []
