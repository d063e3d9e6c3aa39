"""The client of a dry run: it asks, and lets nothing through that would change a host."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from agent.client import AgentClient
from agent.client.transport import AgentProblem
from agent.wire.plan import Plan, PlannedStep
from agent.wire.upkeep import RemoveImages, UnwantedImage

_DRY_RUN = {"dry_run": "true"}
#: POST for the length of what is asked; it changes nothing.
_READS = frozenset({"/v1/images/check"})


class PlanningClient(AgentClient):
    """One agent, over the connections of its real client. ``steps`` are those of what it was told to change."""

    def __init__(self, real: AgentClient) -> None:
        vars(self).update(vars(real))
        self._real = real
        self.steps: list[PlannedStep] = []

    async def remove_images(self, images: Sequence[UnwantedImage]) -> list[str]:
        """Return what would go. Raises AgentProblem with what the agent would answer."""
        body, total_s = RemoveImages(images=list(images)), self._timeouts.read_s
        plan = await self._json("POST", "/v1/images/remove", Plan, body=body, params=_DRY_RUN, total_s=total_s)
        for refusal in plan.refusals:
            raise AgentProblem(self.url, refusal)
        self.steps += plan.steps
        return [step.path for step in plan.steps if step.path is not None]

    def _open(self) -> aiohttp.ClientSession:
        return self._real._open()

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        total_s: float | None,
        *,
        data: bytes | AsyncIterator[bytes] | None = None,
        **arguments: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send what changes nothing. TypeError for all else: a dry run that would change a host is a defect."""
        if method != "GET" and path not in _READS and arguments.get("params") != _DRY_RUN:
            raise TypeError(f"a dry run must not send {method} {path}; give PlanningClient a plan for it")
        async with super()._answer(method, path, total_s, data=data, **arguments) as response:
            yield response
