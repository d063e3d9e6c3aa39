"""Generated requests against the agent's OpenAPI document: no answer outside it, and never a 5xx."""

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import schemathesis
from aiohttp import web
from hypothesis import Phase, given, settings
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import positive_data_acceptance

from agent import app as agent_app
from agent.config import Config
from agent.host.hypervisor import Hypervisor
from agent.host.network import Network
from agent.web.application import DOCUMENT, STOPPING
from agent.web.auth import Secret
from tests.agent.api.conftest import HEADERS, TOKEN, VM, make_host

EXAMPLES = 20
#: A schema cannot say that a cursor must be one of ours, or that a hash must be that of the body: 400 is right there.
NOT_SAYABLE: list[Any] = [positive_data_acceptance]


class Daemon:
    """The agent on a loop and a thread of its own, since schemathesis calls from outside."""

    def __init__(self, root: Any) -> None:
        self._host = make_host(root)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    def __enter__(self) -> "Daemon":
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()

    async def _serve(self) -> None:
        host = self._host
        hypervisor, network = cast(Hypervisor, host.hypervisor), cast(Network, host.network)
        async with agent_app.working(host.config, hypervisor, network) as agent:
            app = agent_app.application_of(agent, host.config, Secret(TOKEN))
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self.document: dict[str, Any] = app[DOCUMENT]
            app[STOPPING].set()  # so that no long poll waits
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("host")) as running:
        yield running


def operations() -> list[APIOperation[Any, Any, Any, Any]]:
    """Return every operation of the document. It follows from the routes alone, so no agent is needed for it."""
    parts = dict.fromkeys(one.name for one in dataclasses.fields(agent_app.Agent))
    app = agent_app.application_of(cast(agent_app.Agent, SimpleNamespace(**parts)), Config(), Secret(TOKEN))
    schema = schemathesis.openapi.from_dict(app[DOCUMENT])
    return [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]


@pytest.mark.case("X9")
@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.label)
def test_no_generated_request_gets_an_answer_outside_the_document(
    operation: APIOperation[Any, Any, Any, Any], daemon: Daemon
) -> None:
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
    )
    @given(case=operation.as_strategy())
    def ask(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(base_url=daemon.url, headers=HEADERS, excluded_checks=NOT_SAYABLE)
        if "uuid" in case.path_parameters:
            case.path_parameters["uuid"] = str(VM)
        if isinstance(case.body, dict) and "vm" in case.body:
            case.body["vm"] = str(VM)
        case.call_and_validate(base_url=daemon.url, headers=HEADERS, excluded_checks=NOT_SAYABLE)

    ask()
