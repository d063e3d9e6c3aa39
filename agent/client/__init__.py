"""The HTTP client of one agent.

Every method is one call of the agent's API, typed. Two errors come out of it: AgentProblem where the agent
answered with a Problem, AgentUnreachable where there was no usable answer (refused, timed out, cut, not our
agent's certificate). After AgentUnreachable the caller does not know whether the call had its effect: every
changing call of the agent can be repeated with the same id, so repeat it or ask.

Deadlines (Timeouts): ``connect_s`` for a connection; ``read_s`` for an answer that the agent gives from its own
knowledge or from libvirt (the agent's own deadline for libvirt is 10 s, so 30 s is enough to hear its 504);
``work_s`` for prepare, commit and abort, which copy host files and call qemu-img (the agent ends these by itself
well before); a long poll has its own ``wait_s`` plus ``read_s``.
"""

from collections.abc import Sequence
from uuid import UUID

from agent.client.archive import ArchiveCalls
from agent.client.transport import AgentProblem, AgentUnreachable, HostFileContent, Timeouts, sha256_of
from agent.wire.base import Page
from agent.wire.event import HostEvents
from agent.wire.host import HostFacts
from agent.wire.host_file import HostFile, HostFiles, HostFileType
from agent.wire.plan import Plan
from agent.wire.transaction import Transaction, TransactionRequest
from agent.wire.upkeep import (
    CheckedImages,
    CheckImages,
    ImageState,
    Leftovers,
    RemovedImages,
    RemovedLeftovers,
    RemoveImages,
    RemoveLeftovers,
    UnwantedImage,
)
from agent.wire.vm import Disk, HostVm

__all__ = ["AgentClient", "AgentProblem", "AgentUnreachable", "HostFileContent", "Timeouts"]


class AgentClient(ArchiveCalls):
    """One agent; Transport says how it is named and reached."""

    async def host(self, controller: str | None = None) -> HostFacts:
        """Return the host's facts; with ``controller`` (an address) the route towards it too."""
        return await self._get("/v1/host", HostFacts, {"controller": controller} if controller else {})

    async def vms(self) -> list[HostVm]:
        """Return every domain of the host, all pages."""
        return await self._all("/v1/vms", Page[HostVm])

    async def vm(self, uuid: UUID) -> HostVm:
        """Return one domain. AgentProblem ``domain-not-found``."""
        return await self._get(f"/v1/vms/{uuid}", HostVm)

    async def disks(self, uuid: UUID) -> list[Disk]:
        """Return the domain's disks with their chains."""
        return await self._all(f"/v1/vms/{uuid}/disks", Page[Disk])

    async def host_files(self, uuid: UUID) -> HostFiles:
        """Return what host files the domain has and which are missing, without their bytes."""
        return await self._get(f"/v1/vms/{uuid}/host-files", HostFiles)

    async def read_host_file(
        self, uuid: UUID, type: HostFileType, if_none_match: str | None = None
    ) -> HostFileContent | None:
        """Return a host file's bytes; None where it still has the SHA-256 ``if_none_match``."""
        headers = {"If-None-Match": f'"{if_none_match}"'} if if_none_match else {}
        return await self._content(f"/v1/vms/{uuid}/host-files/{type}", headers)

    async def write_host_file(
        self, uuid: UUID, type: HostFileType, data: bytes, if_match: str | None = None
    ) -> HostFile:
        """Replace a host file of a domain that is shut off; ``if_match`` is the SHA-256 it must have now."""
        headers = {"If-Match": f'"{if_match}"'} if if_match else {}
        return await self._put(f"/v1/vms/{uuid}/host-files/{type}", data, sha256_of(data), HostFile, headers)

    async def put_transaction(self, id: UUID, request: TransactionRequest) -> Transaction:
        """Begin a transaction and wait until it is prepared. The same id with the same request answers the same."""
        return await self._json(
            "PUT", f"/v1/transactions/{id}", Transaction, body=request, total_s=self._timeouts.work_s
        )

    async def plan_transaction(self, id: UUID, request: TransactionRequest) -> Plan:
        """Return what a transaction would do if it were begun now. Nothing begins."""
        path, params = f"/v1/transactions/{id}", {"dry_run": "true"}
        return await self._json("PUT", path, Plan, body=request, params=params, total_s=self._timeouts.read_s)

    async def transaction(self, id: UUID) -> Transaction:
        """Return how a transaction stands, or ended. AgentProblem ``transaction-not-found``."""
        return await self._get(f"/v1/transactions/{id}", Transaction)

    async def transactions(self) -> list[Transaction]:
        """Return every transaction that the agent remembers, all pages."""
        return await self._all("/v1/transactions", Page[Transaction])

    async def captured(self, id: UUID, type: HostFileType) -> bytes:
        """Return a host file that a transaction captured, checked against its hash."""
        content = await self._content(f"/v1/transactions/{id}/host-files/{type}", {})
        if content is None:
            raise AgentUnreachable(url=self.url, reason="304 to a request without a condition")
        return content.data

    async def upload(self, id: UUID, type: HostFileType, data: bytes, sha256: str | None = None) -> Transaction:
        """Hand over a host file that a revert puts back. ``sha256`` is what the request announced."""
        return await self._put(
            f"/v1/transactions/{id}/host-files/{type}", data, sha256 or sha256_of(data), Transaction, {}
        )

    async def commit(self, id: UUID) -> Transaction:
        """Commit; committed already is fine. A delete answers ``committing``: poll transaction()."""
        return await self._post(id, "commit")

    async def abort(self, id: UUID) -> Transaction:
        """Undo what was prepared; aborted already is fine."""
        return await self._post(id, "abort")

    async def renew(self, id: UUID) -> Transaction:
        """Extend the lease of a prepared transaction by its own length from now."""
        return await self._post(id, "renew")

    async def release(self, uuid: UUID) -> HostVm:
        """Let a domain start again: abort what is prepared for it, remove a guard that was left behind."""
        return await self._json("POST", f"/v1/vms/{uuid}/release", HostVm, total_s=self._timeouts.work_s)

    async def plan_vm(self, uuid: UUID, verb: str) -> Plan:
        """Return what ``release`` or ``accept-blank`` would do to a domain."""
        path, params = f"/v1/vms/{uuid}/{verb}", {"dry_run": "true"}
        return await self._json("POST", path, Plan, params=params, total_s=self._timeouts.read_s)

    async def accept_blank(self, uuid: UUID) -> HostVm:
        """Let the domain's next start through although a host file is missing or empty."""
        return await self._json("POST", f"/v1/vms/{uuid}/accept-blank", HostVm, total_s=self._timeouts.read_s)

    async def check_images(
        self, paths: Sequence[str], *, deep: bool = False, timeout_s: float = 60.0
    ) -> list[ImageState]:
        """Return how image files are, at most PATHS_LIMIT of them; ``timeout_s`` bounds the agent's work."""
        body = CheckImages(paths=list(paths), deep=deep, timeout_s=timeout_s)
        total_s = timeout_s + self._timeouts.read_s
        return (await self._json("POST", "/v1/images/check", CheckedImages, body=body, total_s=total_s)).items

    async def leftovers(self) -> Leftovers:
        """Return the files that are named as Coldframe's own."""
        return await self._get("/v1/leftovers", Leftovers)

    async def remove_leftovers(self, paths: Sequence[str]) -> list[str]:
        """Remove what ended transactions left staged; return what went."""
        body = RemoveLeftovers(paths=list(paths))
        return (
            await self._json("POST", "/v1/leftovers/remove", RemovedLeftovers, body=body, total_s=self._timeouts.work_s)
        ).removed

    async def remove_images(self, images: Sequence[UnwantedImage]) -> list[str]:
        """Remove the disks of a domain that is gone, all or none; return what went. Repeatable."""
        body, total_s = RemoveImages(images=list(images)), self._timeouts.work_s
        return (await self._json("POST", "/v1/images/remove", RemovedImages, body=body, total_s=total_s)).removed

    async def events(self, after: int, wait_s: float = 0.0) -> HostEvents:
        """Return the events after a number, waiting for one for at most ``wait_s`` (the agent caps it at 60)."""
        params = {"after": str(after), "wait": str(wait_s)}
        return await self._json("GET", "/v1/events", HostEvents, params=params, total_s=wait_s + self._timeouts.read_s)
