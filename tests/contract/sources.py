"""The source as contract tests read it."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@cache
def tracked() -> tuple[Path, ...]:
    """Return every file that belongs to the project: what git tracks, or everything in a source archive."""
    if (ROOT / ".git").exists():
        # A working tree may belong to somebody else than root, who runs the tests; git would refuse it.
        command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return tuple(path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file())
    return tuple(path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts)


def modules(*packages: str) -> Iterator[tuple[str, Path, ast.Module]]:
    """Return the dotted name, path and syntax tree of every module of the packages."""
    for path in tracked():
        place = path.relative_to(ROOT)
        if place.suffix == ".py" and place.parts[0] in packages:
            name = ".".join(place.with_suffix("").parts).removesuffix(".__init__")
            yield name, path, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> set[str]:
    """Return what a module imports, wherever in it; ``from a import b`` is ``a.b`` where that is our module."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {_module(str(node.module), alias.name) for alias in node.names}
    return found


def _module(package: str, name: str) -> str:
    place = ROOT.joinpath(*package.split("."), name)
    return f"{package}.{name}" if place.is_dir() or place.with_suffix(".py").exists() else package


def within(name: str, *packages: str) -> bool:
    """Return whether a dotted name is one of the packages or below one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)
