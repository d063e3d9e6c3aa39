"""Reading snapshots, and editing what a person says of them. What changes anything on a host is an operation."""

from functools import partial
from uuid import UUID

from agent.web.call import Call
from agent.web.errors import InvalidRequest, PreconditionFailed
from agent.web.paging import PageQuery
from agent.web.routes import Route, route
from agent.wire.base import Page
from agent.wire.snapshot import EditSnapshot, Snapshot, SnapshotState
from controller import names
from controller.api import pages
from controller.api.conditions import IF_MATCH, change
from controller.db import Database, read
from controller.errors import NameInvalid, SnapshotNotFound, VmAmbiguous, VmNotFound
from controller.store import snapshot_edit, snapshots, vms
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
            route(
                "PATCH",
                "/v1/snapshots/{id}",
                self.edit,
                role="operator",
                headers=(IF_MATCH,),
                errors=(SnapshotNotFound, NameInvalid, PreconditionFailed),
            ),
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

    async def edit(self, call: Call, id: UUID, body: EditSnapshot) -> Snapshot:
        """Rename a snapshot, describe or label it anew, put protection on it or take it off.

        What the body does not name stays as it is; `labels` replaces all labels. A protected snapshot is neither
        deleted nor ungrouped.
        """
        _check(body)
        work = partial(snapshot_edit.edit, id, body)
        return await self._db.run(lambda: change(call, f"Snapshot {id}", partial(snapshots.get, id), work))


def _check(body: EditSnapshot) -> None:
    """Raise NameInvalid for what cannot be stored, InvalidRequest where nothing is asked for."""
    if body == EditSnapshot():
        raise InvalidRequest(where="body", reason="expected name, description, labels or protected")
    if body.name is not None:
        names.check_text("Snapshot", body.name)
    names.check_description(body.description or "")
    names.check_labels(body.labels or {})


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
