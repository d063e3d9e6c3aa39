"""Reading snapshots. What changes them is an operation."""

from uuid import UUID

from agent.web.call import Call
from agent.web.paging import PageQuery
from agent.web.routes import Route, route
from agent.wire.base import Page
from agent.wire.snapshot import Snapshot, SnapshotState
from controller.api import pages
from controller.db import Database, read
from controller.errors import SnapshotNotFound, VmAmbiguous, VmNotFound
from controller.store import snapshots, vms
from controller.store.paging import Slice

_Found = Slice[Snapshot, snapshots.Position]


class SnapshotQuery(PageQuery, kw_only=True, frozen=True):
    """What to list of one VM."""

    name: str | None = None
    state: SnapshotState | None = None
    automatic: bool | None = None


class AllQuery(SnapshotQuery, kw_only=True, frozen=True):
    """What to list of all VMs. ``vm`` is a UUID or a name that is unique."""

    vm: str | None = None


class SnapshotRoutes:
    """Snapshots, oldest first: so each comes after its parent."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def routes(self) -> list[Route]:
        """Return the routes."""
        finding = (VmNotFound, VmAmbiguous)
        return [
            route("GET", "/v1/vms/{vm}/snapshots", self.of_vm, errors=finding),
            route("GET", "/v1/snapshots", self.list, errors=finding),
            route("GET", "/v1/snapshots/{id}", self.show, errors=(SnapshotNotFound,)),
        ]

    async def of_vm(self, call: Call, vm: str, query: SnapshotQuery) -> Page[Snapshot]:
        """List a VM's snapshots, each after its parent."""
        return pages.page(await self._db.run(_page, query, vm))

    async def list(self, call: Call, query: AllQuery) -> Page[Snapshot]:
        """List snapshots of all VMs."""
        return pages.page(await self._db.run(_page, query, query.vm))

    async def show(self, call: Call, id: UUID) -> Snapshot:
        """Show one snapshot."""
        return await self._db.run(snapshots.get, id)


def _page(query: SnapshotQuery, vm: str | None) -> _Found:
    with read():
        return snapshots.page(
            query.limit,
            pages.position(query, snapshots.Position),
            vm=None if vm is None else vms.resolve(vm),
            name=query.name,
            state=query.state,
            automatic=query.automatic,
        )
