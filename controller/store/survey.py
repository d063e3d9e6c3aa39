"""All records at once, as ``doctor`` compares them with the hosts."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from agent.wire import fleet
from agent.wire.snapshot import Snapshot as WireSnapshot
from controller.db import read
from controller.models import Event, Operation, Snapshot, Vm
from controller.store import hosts, identity, snapshots, vms
from controller.store.snapshots import GroupVolume

_ALL = 1_000_000  # the pages of a list without an end


@dataclass(frozen=True)
class Records:
    """What the controller knows. ``busy``: VMs with work under way, of which the records are about to change.

    ``own`` is the controller's UUID. ``forgotten`` tells when a VM's records were last removed on request, as far as
    the event log goes back.
    """

    own: UUID
    hosts: list[fleet.Host]
    vms: dict[UUID, fleet.Vm]
    snapshots: dict[UUID, WireSnapshot]
    volumes: list[GroupVolume]
    busy: set[UUID]
    forgotten: dict[UUID, datetime] = field(default_factory=dict)

    def volumes_of(self, host: str) -> list[GroupVolume]:
        """Return the frozen files on one host that are settled: recorded whole, and nothing works on them."""
        return [
            one
            for one in self.volumes
            if one.host == host
            and not one.merged
            and one.snapshot is not None
            and (snapshot := self.snapshots.get(one.snapshot)) is not None
            and snapshot.state == "ready"
            and snapshot.vm not in self.busy
        ]


def take() -> Records:
    """Read everything, as of one moment."""
    with read():
        at_work = (Operation.state.in_(["queued", "running"]), Operation.parked_until.is_null())
        open_vms = Operation.select(Operation.vm).where(*at_work)
        forgotten = Event.select(Event.vm, Event.at).where(Event.type == "vm.forgotten").order_by(Event.seq)
        return Records(
            own=identity.own(),
            hosts=list(hosts.page(_ALL).items),
            vms={one.uuid: one for one in vms.page(_ALL).items},
            snapshots={one.uuid: one for one in snapshots.page(_ALL).items},
            volumes=snapshots.all_volumes(),
            busy={row.vm for row in open_vms if row.vm is not None},
            forgotten={row.vm: row.at for row in forgotten if row.vm is not None},
        )


def with_snapshots() -> list[tuple[UUID, str | None]]:
    """Return every VM that has a snapshot, with the host that it is on."""
    rows = Vm.select(Vm.uuid, Vm.host).where(Vm.uuid.in_(Snapshot.select(Snapshot.vm))).order_by(Vm.uuid)
    return [(row.uuid, row.host_id) for row in rows]
