"""Looking after a host: the state of image files, and what was left behind."""

from agent.disposal import Disposal
from agent.errors import (
    HypervisorRefused,
    HypervisorUnavailable,
    ImageInUse,
    ImageRefused,
    NoSpace,
    QemuImgFailed,
    StorageFailed,
    ToolFailed,
    ToolTimeout,
)
from agent.upkeep import Upkeep
from agent.web.call import Call
from agent.web.routes import Route, route
from agent.wire.plan import Plan, PlannedStep, planned
from agent.wire.upkeep import (
    CheckedImages,
    CheckImages,
    Leftovers,
    RemovedImages,
    RemovedLeftovers,
    RemoveImages,
    RemoveLeftovers,
)


class UpkeepRoutes:
    """What verification and ``doctor`` ask."""

    def __init__(self, upkeep: Upkeep, disposal: Disposal) -> None:
        self._upkeep = upkeep
        self._disposal = disposal

    def routes(self) -> list[Route]:
        """Return the routes."""
        looking = (HypervisorUnavailable, HypervisorRefused, StorageFailed)
        checking = (StorageFailed, QemuImgFailed, ToolFailed, ToolTimeout)
        return [
            route("POST", "/v1/images/check", self.check, errors=checking, reads=True),
            route(
                "POST",
                "/v1/images/remove",
                self.remove_images,
                errors=(*looking, ImageRefused, ImageInUse),
                role="admin",
                planner=self.plan_remove_images,
            ),
            route("GET", "/v1/leftovers", self.list, errors=looking),
            route(
                "POST",
                "/v1/leftovers/remove",
                self.remove,
                errors=(*looking, NoSpace),
                role="admin",
                planner=self.plan_remove,
            ),
        ]

    async def check(self, call: Call, body: CheckImages) -> CheckedImages:
        """Say how image files are: whether each is there, what it stands on, and whether it was written to.

        With `deep`, `qemu-img check` looks through their metadata; nothing is ever repaired. A file outside the
        allowed directories is not looked at.
        """
        return CheckedImages(items=await self._upkeep.check(body))

    async def remove_images(self, call: Call, body: RemoveImages) -> RemovedImages:
        """Remove the disks of a domain that is gone: all that are named, or none.

        A file that a domain of this host names, that another file beside it stands on, or that anybody has open is
        refused by name, and then all are left. Files that are gone already are passed over.
        """
        return RemovedImages(removed=await self._disposal.remove(body.images))

    async def list(self, call: Call) -> Leftovers:
        """List files that are named as Coldframe names its own, with the domains and images that use each."""
        return await self._upkeep.leftovers()

    async def remove(self, call: Call, body: RemoveLeftovers) -> RemovedLeftovers:
        """Remove what transactions that have ended left staged. Whatever else is named in the body is left alone."""
        return RemovedLeftovers(removed=await self._upkeep.remove(body.paths))

    async def plan_remove(self, call: Call, body: RemoveLeftovers) -> Plan:
        """Plan ``remove``."""
        found = await self._upkeep.removable(body.paths)
        steps = [PlannedStep(action="remove-file", name="remove what was staged", path=path) for path in found]
        return planned("leftovers-remove", steps, [])

    async def plan_remove_images(self, call: Call, body: RemoveImages) -> Plan:
        """Plan ``remove_images``: every file that would go, and every one that will not."""
        paths, objections = await self._disposal.foresee(body.images)
        steps = [PlannedStep(action="remove-image", name="remove the image", path=path) for path in paths]
        return planned("images-remove", [] if objections else steps, [err.problem() for err in objections])
