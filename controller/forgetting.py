"""Removing the disks of a VM that is to be forgotten, before its records go: these say where the files are."""

from uuid import UUID

from agent.client import AgentProblem, AgentUnreachable
from controller.db import Database
from controller.errors import DisksNotRemoved, HostNotFound
from controller.hosts import Hosts
from controller.operations import elsewhere
from controller.store import vms, volumes


async def remove_disks(db: Database, hosts: Hosts, vm: UUID) -> None:
    """Let each host remove the VM's files that are on it, all or none; no host may define the VM any more.

    What is gone already is passed over, so a call that died can be repeated. Raises VmNotFound, VmDefined, and
    DisksNotRemoved, where a host says that somebody else needs one of them or cannot be asked, or one of another does.
    """
    name = (await db.run(vms.get, vm)).name
    doomed = await db.run(volumes.disks_of, vm)
    for host, images in doomed.items():
        shown = await elsewhere.shown(db, hosts, host)
        if (need := await db.run(volumes.needed_by_others, vm, host, images, shown)) is not None:
            raise DisksNotRemoved(vm=name, reason=need, host_code=None)
    for host, images in doomed.items():
        try:
            await hosts.client(host).remove_images(images)
        except (AgentProblem, AgentUnreachable, HostNotFound) as err:
            told = err.problem()
            raise DisksNotRemoved(vm=name, reason=f"{host}: {told.detail}", host_code=told.code) from err
