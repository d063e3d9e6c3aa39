"""Every type that crosses the wire has an example, and the example survives the crossing."""

import importlib
import inspect
from typing import get_args, get_origin

import msgspec
import pytest

from agent.wire.base import Answer, Page, Request
from tests.contract.sources import modules, within

#: What has no resource of its own: bases, and a list of something.
BASES = {Answer, Request, Page}


def wire_types() -> list[type[msgspec.Struct]]:
    found = []
    for name, _, _ in modules("agent"):
        if not within(name, "agent.wire"):
            continue
        module = importlib.import_module(name)
        kinds = [one for one in vars(module).values() if inspect.isclass(one) and issubclass(one, msgspec.Struct)]
        found += [one for one in kinds if one.__module__ == name and one not in BASES]
    return found


def parts(kind: type[msgspec.Struct]) -> set[type]:
    """Return the structs that occur in a struct's fields: their examples are part of its own."""
    found: set[type] = set()
    waiting = [field.type for field in msgspec.structs.fields(kind)]
    while waiting:
        one = waiting.pop()
        if inspect.isclass(one) and get_origin(one) is None and issubclass(one, msgspec.Struct):
            found.add(one)
        waiting += get_args(one)
    return found


@pytest.mark.parametrize("kind", wire_types(), ids=lambda kind: str(kind.__name__))
def test_the_example_survives_the_crossing(kind: type[msgspec.Struct]) -> None:
    example = getattr(kind, "example", None)
    if example is None:
        inside = {part for other in wire_types() if hasattr(other, "example") for part in parts(other)}
        assert kind in inside, f"{kind.__name__} has no example and is in nobody else's"
        return
    assert msgspec.json.decode(msgspec.json.encode(example()), type=kind) == example()


@pytest.mark.parametrize("kind", wire_types(), ids=lambda kind: str(kind.__name__))
def test_requests_refuse_unknown_fields_and_answers_tolerate_them(kind: type[msgspec.Struct]) -> None:
    assert issubclass(kind, Request | Answer)
    assert kind.__struct_config__.forbid_unknown_fields == issubclass(kind, Request)
