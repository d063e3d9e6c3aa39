"""Fixtures over private hosts; name this module in ``pytest_plugins``.

One host serves all tests of a process, as its start costs about a second with libvirtd's questions to QEMU; guests
are made afresh for each test. A test that needs a host to itself makes a ``LabHost`` of its own.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from tests.lab import requirements
from tests.lab.guest import Guest
from tests.lab.host import LabHost
from tests.lab.postgresql import Postgresql

GuestFactory = Callable[..., Guest]
_NUMBERS = count(1)


@pytest.fixture(scope="session")
def lab_ready() -> None:
    """Fail, never skip, where a private host cannot be made, and say what is missing."""
    lines = requirements.missing()
    if lines:
        pytest.fail("a private libvirt host cannot be made here:\n" + "\n".join(lines), pytrace=False)


@pytest.fixture(scope="session")
def lab_host(lab_ready: None, worker_id: str) -> Iterator[LabHost]:
    """The private host that this process's tests share; its libvirtd runs and the hook is in place."""
    with LabHost(f"kvm-{worker_id}") as host:
        yield host


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgresql]:
    """The PostgreSQL server that this process's tests share."""
    with Postgresql() as server:
        yield server


@pytest.fixture
def guest(lab_host: LabHost) -> Iterator[GuestFactory]:
    """A factory for guests on the shared host; names are made unique, and guests are gone after the test."""
    made: list[Guest] = []

    def define(name: str = "", **shape: Any) -> Guest:
        made.append(lab_host.define_guest(name or f"vm-{next(_NUMBERS)}", **shape))
        return made[-1]

    yield define
    for one in made:
        one.remove()
