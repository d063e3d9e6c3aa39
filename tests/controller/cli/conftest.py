"""Run the command in this process against a controller in memory."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest

from controller.cli.app import run
from tests.controller.cli.fake import FakeController


class Run(NamedTuple):
    """How one command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on standard output."""
        return msgspec.json.decode(self.out)


Coldframe = Callable[..., Run]


@pytest.fixture
def fake() -> Iterator[FakeController]:
    """A controller without answers."""
    with FakeController() as controller:
        yield controller


@pytest.fixture
def coldframe(fake: FakeController, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Coldframe:
    """Run ``coldframe ARGUMENTS...`` against the fake."""
    monkeypatch.setenv("COLDFRAME_URL", fake.url)
    monkeypatch.delenv("COLDFRAME_TOKEN_FILE", raising=False)

    def call(*arguments: str) -> Run:
        status = run(arguments)
        captured = capsys.readouterr()
        return Run(status, captured.out, captured.err)

    return call
