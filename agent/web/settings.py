"""Settings: typed defaults, then the file, its drop-ins, the environment, flags; the last one wins.

A daemon declares a frozen msgspec Struct whose fields all have defaults. The file is TOML, flat. Drop-ins of
``/etc/coldframe/agent.toml`` are ``/etc/coldframe/agent.d/*.toml`` in byte order; those of ``--config FILE`` stand
beside FILE in the same way. ``COLDFRAME_AGENT_STATE_DIR`` sets ``state_dir``; a list is separated by commas or
written as a TOML array; ``COLDFRAME_AGENT_CONFIG`` names the file. An unknown name anywhere is fatal.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

import msgspec

from agent.web.auth import Secret
from agent.web.errors import SettingsError

S = TypeVar("S", bound=msgspec.Struct)

_URL_PASSWORD = re.compile(r"(://[^/@\s:]*:)[^@\s]*(@)")
_QUERY_PASSWORD = re.compile(r"([?&](?:password|sslpassword)=)[^&\s]*")


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """Settings in force, and where each came from: ``default``, a file, ``environment`` or ``flag``."""

    settings: S
    sources: dict[str, str]


class _Collector(Generic[S]):
    """Values by key with their source; a later one replaces an earlier one."""

    def __init__(self, kind: type[S]) -> None:
        self._fields = {one.name: one.type for one in msgspec.structs.fields(kind)}
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = dict.fromkeys(self._fields, "default")

    def add(self, key: str, value: Any, source: str, *, shown_as: str, text: bool = False) -> None:
        """Check one value; ``text``: it comes from the environment, where everything is a string."""
        if key not in self._fields:
            raise SettingsError(where=shown_as, reason=f"unknown key{_suggestion(key, self._fields)}")
        kind = self._fields[key]
        if text and _is_list(kind):
            value = _list_from_text(value, shown_as)
        try:
            self.values[key] = msgspec.convert(value, kind, strict=not text, dec_hook=_decode)
        except msgspec.ValidationError as err:
            raise SettingsError(where=shown_as, reason=str(err)) from err
        self.sources[key] = source

    def add_file(self, path: Path) -> None:
        """Read one TOML file. Raises SettingsError naming file and key."""
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as err:
            raise SettingsError(where=path, reason=f"cannot be read: {err.strerror}") from err
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
            raise SettingsError(where=path, reason=f"not TOML: {err}") from err
        for key, value in table.items():
            self.add(key, value, str(path), shown_as=f"{path}: {key}")


def load(
    kind: type[S],
    *,
    default_file: Path,
    env_prefix: str,
    environ: Mapping[str, str],
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Loaded[S]:
    """Return the settings in force. Raises SettingsError naming what is wrong and where.

    The default file may be absent; one that was named by ``config`` or the environment may not.
    Flags that are None were not given.
    """
    collector = _Collector(kind)
    named = config or (Path(environ[env_prefix + "CONFIG"]) if env_prefix + "CONFIG" in environ else None)
    file = named or default_file
    if named is not None or file.exists():
        collector.add_file(file)
    for drop_in in sorted((file.parent / f"{file.stem}.d").glob("*.toml")):
        collector.add_file(drop_in)
    for name, value in sorted(environ.items()):
        if name.startswith(env_prefix) and name != env_prefix + "CONFIG":
            key = name.removeprefix(env_prefix).lower()
            collector.add(key, value, "environment", shown_as=name, text=True)
    for key, value in (flags or {}).items():
        if value is not None:
            collector.add(key, value, "flag", shown_as=f"--{key.replace('_', '-')}", text=isinstance(value, str))
    try:
        return Loaded(kind(**collector.values), collector.sources)
    except ValueError as err:
        raise SettingsError(where=file, reason=str(err)) from err


def show(loaded: Loaded[Any]) -> str:
    """Return the settings in force as TOML, each with its source; secrets as ``***``."""
    lines = []
    for key, source in loaded.sources.items():
        value = getattr(loaded.settings, key)
        lines.append(f"# {key} is not set  # {source}" if value is None else f"{key} = {_toml(value)}  # {source}")
    return "\n".join(lines) + "\n"


def _decode(kind: type, value: Any) -> Any:
    """Make the types that TOML does not know, for msgspec."""
    if not isinstance(value, str):
        raise ValueError(f"Expected `str`, got `{type(value).__name__}`")  # noqa: TRY004 - msgspec adds the place
    if kind is Path:
        if not value or "\0" in value:
            raise ValueError("Expected a path")
        return Path(value).absolute()
    if kind is Secret:
        return Secret(value)
    raise NotImplementedError(kind)


def _is_list(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return _is_list(get_args(kind)[0])
    if get_origin(kind) in {Union, UnionType}:
        return any(_is_list(choice) for choice in get_args(kind))
    return get_origin(kind) is list


def _list_from_text(text: str, shown_as: str) -> list[Any]:
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        found = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as err:
        raise SettingsError(where=shown_as, reason=f"not a TOML array: {err}") from err
    if not isinstance(found, list):
        raise SettingsError(where=shown_as, reason="not a TOML array")
    return found


def _suggestion(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are: {', '.join(sorted(known))}"


def mask(text: str) -> str:
    """Return a URL without its password; any other text as it is."""
    return _QUERY_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1***\2", text))


def _toml(value: Any) -> str:
    """Return a value as TOML: its strings, arrays, numbers and booleans are written as JSON writes them."""
    if isinstance(value, Secret):
        return '"***"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(one) for one in value)}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(mask(str(value)), ensure_ascii=False).replace("\x7f", "\\u007f")
