"""Looking after a host: the state of image files, and what was left behind."""

from agent.errors import (
    HypervisorRefused,
    HypervisorUnavailable,
    NoSpace,
    QemuImgFailed,
    StorageFailed,
    ToolFailed,
    ToolTimeout,
)
from agent.upkeep import Upkeep
from agent.web.call import Call
from agent.web.routes import Route, route
from agent.wire.upkeep import CheckedImages, CheckImages, Leftovers, RemovedLeftovers, RemoveLeftovers


class UpkeepRoutes:
    """What verification and ``doctor`` ask."""

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep

    def routes(self) -> list[Route]:
        """Return the routes."""
        looking = (HypervisorUnavailable, HypervisorRefused, StorageFailed)
        checking = (StorageFailed, QemuImgFailed, ToolFailed, ToolTimeout)
        return [
            route("POST", "/v1/images/check", self.check, errors=checking),
            route("GET", "/v1/leftovers", self.list, errors=looking),
            route("POST", "/v1/leftovers/remove", self.remove, errors=(*looking, NoSpace), role="admin"),
        ]

    async def check(self, call: Call, body: CheckImages) -> CheckedImages:
        """Say how image files are: whether each is there, what it stands on, and whether it was written to.

        With `deep`, `qemu-img check` looks through their metadata; nothing is ever repaired. A file outside the
        allowed directories is not looked at.
        """
        return CheckedImages(items=await self._upkeep.check(body))

    async def list(self, call: Call) -> Leftovers:
        """List files that are named as Coldframe names its own, with the domains and images that use each."""
        return await self._upkeep.leftovers()

    async def remove(self, call: Call, body: RemoveLeftovers) -> RemovedLeftovers:
        """Remove what transactions that have ended left staged. Whatever else is named in the body is left alone."""
        return RemovedLeftovers(removed=await self._upkeep.remove(body.paths))
