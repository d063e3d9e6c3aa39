"""Backup files: what they are, their bytes, and the removal of those that outside resources own."""

from functools import partial
from uuid import UUID

from aiohttp import web

from agent.web.call import Call
from agent.web.errors import PreconditionFailed
from agent.web.paging import PageQuery
from agent.web.routes import BYTES, Route, route
from agent.wire.backup_file import BackupFile, OwnerKind
from agent.wire.base import Page
from agent.wire.host_file import HostFileType
from controller.api import pages
from controller.api.conditions import IF_MATCH, change
from controller.api.vms import ETAG, IF_NONE_MATCH, bytes_answer
from controller.db import Database, read
from controller.errors import BackupFileNotFound, BackupFileOwned, ContentCorrupt, ContentMissing
from controller.store import backup_files


class BackupFileQuery(PageQuery, kw_only=True, frozen=True):
    """What to list."""

    owner: UUID | None = None
    owner_kind: OwnerKind | None = None
    type: HostFileType | None = None


class BackupFileRoutes:
    """Backup files by UUID. Their bytes may be a TPM's state, so a reader does not get them."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/v1/backup-files/{id}"
        return [
            route("GET", "/v1/backup-files", self.list),
            route("GET", one, self.show, errors=(BackupFileNotFound,)),
            route(
                "DELETE",
                one,
                self.remove,
                role="operator",
                headers=(IF_MATCH,),
                errors=(BackupFileNotFound, BackupFileOwned, PreconditionFailed),
            ),
            route(
                "GET",
                f"{one}/content",
                self.content,
                role="operator",
                media_type=BYTES,
                statuses={304: None},
                headers=(IF_NONE_MATCH,),
                answer_headers=(ETAG,),
                errors=(BackupFileNotFound, ContentMissing, ContentCorrupt),
            ),
        ]

    async def list(self, call: Call, query: BackupFileQuery) -> Page[BackupFile]:
        """List backup files, oldest first."""
        found = await self._db.run(
            backup_files.page,
            query.limit,
            pages.position(query, backup_files.Position),
            owner=query.owner,
            owner_kind=query.owner_kind,
            type=query.type,
        )
        return pages.page(found)

    async def show(self, call: Call, id: UUID) -> BackupFile:
        """Show one backup file."""
        return await self._db.run(backup_files.get, id)

    async def remove(self, call: Call, id: UUID) -> BackupFile:
        """Remove a backup file of an outside owner, and answer with it as it was.

        One that belongs to a snapshot or a VM is refused: it goes with its owner.
        """
        work = partial(backup_files.remove_external, id)
        return await self._db.run(lambda: change(call, f"Backup file {id}", partial(backup_files.get, id), work))

    async def content(self, call: Call, id: UUID) -> web.Response:
        """Read a backup file's bytes: NVRAM as it is, TPM state as a tar archive."""
        found, data = await self._db.run(_content, id)
        return bytes_answer(call, found.sha256, data)


def _content(uuid: UUID) -> tuple[BackupFile, bytes]:
    with read():
        return backup_files.get(uuid), backup_files.data(uuid)
