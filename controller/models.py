"""The controller's tables.

Times are stored as RFC 3339 text in UTC with microseconds, so they sort as text; UUIDs as lower-case text with
hyphens; JSON as text: SQLite and PostgreSQL then hold the same. Rows that own contents (host files, backup
files) are never removed by a cascade, since their contents would stay behind: each owner has one helper in
``controller.store`` that removes them, and the foreign keys refuse any other way.

The models are bound to the database that ``controller.db`` has open; its thread alone has a connection.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from peewee import (
    AutoField,
    BigIntegerField,
    BlobField,
    BooleanField,
    CompositeKey,
    DatabaseProxy,
    Field,
    ForeignKeyField,
    Model,
    TextField,
)

from agent.wire.access import Role
from agent.wire.backup_file import OwnerKind
from agent.wire.base import utc_now
from agent.wire.clone import CloneMode, TpmChoice
from agent.wire.host_file import HostFileFormat, HostFileType
from agent.wire.operation import OperationState
from agent.wire.snapshot import Completeness, SnapshotState
from agent.wire.vm import Firmware, VmState
from controller.fields import JsonField, TimeField, UuidField, WordField

#: Bound by controller.db.Database.open().
database = DatabaseProxy()


class Record(Model):
    """The base of all tables."""

    class Meta:
        """Bind to the one open database."""

        database = database
        legacy_table_names = False


class Host(Record):
    """An enrolled host. ``agent_token`` is secret: no list, log line or answer carries it (store.hosts.secret)."""

    name: Field[str] = TextField(primary_key=True)
    url: Field[str] = TextField()
    agent_token: Field[str] = TextField()
    fingerprint: Field[str | None] = TextField(null=True)
    last_seen_at: Field[datetime | None] = TimeField(null=True)
    error: Field[str | None] = TextField(null=True)
    facts: Field[Any] = JsonField(null=True)
    event_log: Field[UUID | None] = UuidField(null=True)
    event_cursor: Field[int] = BigIntegerField(default=0)
    created_at: Field[datetime] = TimeField(default=utc_now)

    class Meta:
        """Name the table."""

        table_name = "host"


class Vm(Record):
    """A VM as last seen. ``host`` is null when no host defines it; ``conflict`` names the hosts when several do."""

    uuid: Field[UUID] = UuidField(primary_key=True)
    name: Field[str] = TextField(index=True)
    host_id: str | None
    host = ForeignKeyField(Host, null=True, on_delete="SET NULL", backref="vms")
    conflict: Field[str | None] = TextField(null=True)
    state: Field[VmState] = WordField()
    firmware: Field[Firmware] = WordField()
    tpm: Field[Literal["2.0", "1.2"] | None] = WordField(null=True)
    managed_save: Field[bool] = BooleanField(default=False)
    disks: Field[Any] = JsonField()
    nvram: Field[str | None] = TextField(null=True)
    domain_xml: Field[str] = TextField(default="")
    seen_at: Field[datetime | None] = TimeField(null=True)

    class Meta:
        """Name the table."""

        table_name = "vm"


class VmDefinition(Record):
    """One host's definition of one VM (``wire.vm.HostVm``); several for one VM are a conflict."""

    vm_id: UUID
    host_id: str
    vm = ForeignKeyField(Vm, on_delete="CASCADE", backref="definitions")
    host = ForeignKeyField(Host, on_delete="CASCADE", backref="definitions")
    facts: Field[Any] = JsonField()

    class Meta:
        """Name the table; a host defines a VM once."""

        table_name = "vm_definition"
        primary_key = CompositeKey("vm", "host")


class Content(Record):
    """Bytes by their SHA-256, stored once however many rows name them."""

    sha256: Field[str] = TextField(primary_key=True)
    size_bytes: Field[int] = BigIntegerField()
    codec: Field[str] = TextField()
    data: Field[bytes] = BlobField()

    class Meta:
        """Name the table."""

        table_name = "content"


class HostFile(Record):
    """The newest copy of one host file of one VM on one host.

    ``host`` is a name and not a foreign key: the copy outlives the host's removal, when it may be the last one.
    """

    id = AutoField()
    vm_id: UUID
    vm = ForeignKeyField(Vm, on_delete="RESTRICT", backref="host_files")
    host: Field[str] = TextField()
    type: Field[HostFileType] = WordField()
    content_id: str | None
    content = ForeignKeyField(Content, null=True, on_delete="RESTRICT", backref="host_files")
    path: Field[str | None] = TextField(null=True)
    synced_at: Field[datetime | None] = TimeField(null=True)
    dirty_since: Field[datetime | None] = TimeField(null=True)
    reason: Field[str | None] = TextField(null=True)
    synced_seq: Field[int] = BigIntegerField(default=0)
    dirty_seq: Field[int] = BigIntegerField(default=0)

    class Meta:
        """Name the table; one row per type."""

        table_name = "host_file"
        indexes = ((("vm", "host", "type"), True),)


class BackupFile(Record):
    """A frozen copy of one host file. The unique index begins with the owner, so it also serves lists by owner."""

    uuid: Field[UUID] = UuidField(primary_key=True)
    owner_kind: Field[OwnerKind] = WordField()
    owner_uuid: Field[UUID] = UuidField()
    type: Field[HostFileType] = WordField()
    content_id: str
    content = ForeignKeyField(Content, on_delete="RESTRICT", backref="backup_files")
    format: Field[HostFileFormat] = WordField()
    created_at: Field[datetime] = TimeField(default=utc_now)

    class Meta:
        """Name the table; one copy per owner and type."""

        table_name = "backup_file"
        indexes = ((("owner_uuid", "type"), True),)


class Snapshot(Record):
    """All disks and host files of one VM at one moment. ``current``: the VM stands on it; ``seq``: their order."""

    uuid: Field[UUID] = UuidField(primary_key=True)
    vm_id: UUID
    vm = ForeignKeyField(Vm, on_delete="RESTRICT", backref="snapshots")
    parent_id: UUID | None
    parent = ForeignKeyField("self", null=True, on_delete="RESTRICT", backref="children")
    name: Field[str] = TextField()
    description: Field[str] = TextField(default="")
    labels: Field[Any] = JsonField(default=dict)
    current: Field[bool] = BooleanField(default=False)
    state: Field[SnapshotState] = WordField(index=True)
    automatic: Field[bool] = BooleanField(default=False)
    protected: Field[bool] = BooleanField(default=False)
    ungrouped: Field[bool] = BooleanField(default=False)
    host_files_state: Field[Completeness] = WordField()
    expected: Field[Any] = JsonField(default=list)
    missing: Field[Any] = JsonField(default=list)
    reason: Field[str | None] = TextField(null=True)
    excluded: Field[Any] = JsonField(default=list)
    domain_xml: Field[str] = TextField(default="")
    firmware: Field[Any] = JsonField(default=list)
    tpm_secret: Field[UUID | None] = UuidField(null=True)
    transaction: Field[UUID | None] = UuidField(null=True)
    created_at: Field[datetime] = TimeField(default=utc_now)
    seq: Field[int] = BigIntegerField(default=0)

    class Meta:
        """Name the table."""

        table_name = "snapshot"


Snapshot.add_index(Snapshot.vm, unique=True, where=(Snapshot.current == True), name="snapshot_one_current")  # noqa: E712 - SQL


class VolumeSnapshot(Record):
    """One disk's frozen file. ``merged``: it is gone, by a deletion that has not finished its other disks; ``altered``:
    one has begun to write to it; ``hidden``: its snapshot is gone, but other files stand on it."""

    id = AutoField()
    snapshot_id: UUID | None
    snapshot = ForeignKeyField(Snapshot, null=True, on_delete="CASCADE", backref="volumes")
    vm_id: UUID
    vm = ForeignKeyField(Vm, on_delete="RESTRICT", backref="volumes")
    target: Field[str] = TextField()
    host: Field[str] = TextField()
    path: Field[str] = TextField(index=True)
    format: Field[str] = TextField()
    backing: Field[str | None] = TextField(null=True)
    virtual_size_bytes: Field[int] = BigIntegerField()
    allocated_bytes: Field[int] = BigIntegerField()
    fingerprint: Field[str] = TextField(default="")
    hidden: Field[bool] = BooleanField(default=False)
    merged: Field[bool] = BooleanField(default=False)
    altered: Field[bool] = BooleanField(default=False)

    class Meta:
        """Name the table; one file per disk of a snapshot."""

        table_name = "volume_snapshot"
        indexes = ((("snapshot", "target"), True),)


class Clone(Record):
    """What a VM was cloned from. Nothing here is a foreign key: source and snapshot may be gone before the clone.

    ``seeds`` are hash and format by type until the clone is there; then its backup files hold them.
    """

    vm: Field[UUID] = UuidField(primary_key=True)
    name: Field[str] = TextField()
    source: Field[UUID] = UuidField(index=True)
    snapshot: Field[UUID] = UuidField(index=True)
    host: Field[str] = TextField()
    mode: Field[CloneMode] = WordField()
    tpm: Field[TpmChoice] = WordField()
    operation: Field[UUID] = UuidField()
    transaction: Field[UUID] = UuidField()
    state: Field[Literal["creating", "ready"]] = WordField()
    started: Field[bool] = BooleanField(default=False)
    seeds: Field[Any] = JsonField(default=dict)
    result: Field[Any] = JsonField(default=dict)
    created_at: Field[datetime] = TimeField(default=utc_now)

    class Meta:
        """Name the table."""

        table_name = "clone"


class Operation(Record):
    """One piece of work. ``seq`` is the order in a VM's queue; ``memo`` is what a restart needs to go on.

    ``parked_until``: it waits for its VM to stop, outside the queue, for so long at least.

    ``vm`` and ``host`` are not foreign keys: history outlives what it tells of.
    """

    seq = AutoField()
    uuid: Field[UUID] = UuidField(unique=True)
    kind: Field[str] = TextField()
    vm: Field[UUID | None] = UuidField(null=True, index=True)
    host: Field[str | None] = TextField(null=True)
    state: Field[OperationState] = WordField(index=True)
    step: Field[str] = TextField(default="")
    done_bytes: Field[int] = BigIntegerField(default=0)
    total_bytes: Field[int] = BigIntegerField(default=0)
    request: Field[Any] = JsonField(default=dict)
    memo: Field[Any] = JsonField(default=dict)
    result: Field[Any] = JsonField(default=dict)
    error: Field[Any] = JsonField(null=True)
    owner: Field[str | None] = TextField(null=True)
    beat: Field[int] = BigIntegerField(default=0)
    cancel_requested: Field[bool] = BooleanField(default=False)
    parked_until: Field[datetime | None] = TimeField(null=True)
    idempotency_key: Field[str | None] = TextField(null=True, unique=True)
    body_hash: Field[str | None] = TextField(null=True)
    created_at: Field[datetime] = TimeField(default=utc_now)
    ended_at: Field[datetime | None] = TimeField(null=True)

    class Meta:
        """Name the table."""

        table_name = "operation"


class RetentionPolicy(Record):
    """Which snapshots are kept. It goes with the VM that it names; without one it is about all VMs."""

    name: Field[str] = TextField(primary_key=True)
    vm_id: UUID | None
    vm = ForeignKeyField(Vm, null=True, on_delete="CASCADE", backref="retention_policies")
    labels: Field[Any] = JsonField(default=dict)
    keep_last: Field[int] = BigIntegerField()
    keep_hourly: Field[int] = BigIntegerField()
    keep_daily: Field[int] = BigIntegerField()
    keep_weekly: Field[int] = BigIntegerField()
    keep_monthly: Field[int] = BigIntegerField()
    enabled: Field[bool] = BooleanField()
    created_at: Field[datetime] = TimeField(default=utc_now)

    class Meta:
        """Name the table."""

        table_name = "retention_policy"


class Identity(Record):
    """Who this controller is to the agents; one row."""

    uuid: Field[UUID] = UuidField(primary_key=True)


class Event(Record):
    """One line of the controller's event log."""

    seq = AutoField()
    at: Field[datetime] = TimeField(default=utc_now)
    type: Field[str] = TextField()
    host: Field[str | None] = TextField(null=True)
    vm: Field[UUID | None] = UuidField(null=True)
    data: Field[Any] = JsonField(default=dict)

    class Meta:
        """Name the table."""

        table_name = "event"


class AuditEntry(Record):
    """One changing call. ``status`` is 0 until it has ended."""

    seq = AutoField()
    at: Field[datetime] = TimeField(default=utc_now)
    actor: Field[str] = TextField()
    role: Field[Role] = WordField()
    remote: Field[str] = TextField()
    method: Field[str] = TextField()
    path: Field[str] = TextField()
    status: Field[int] = BigIntegerField(default=0)
    operation: Field[UUID | None] = UuidField(null=True)

    class Meta:
        """Name the table."""

        table_name = "audit_entry"


class Token(Record):
    """An API token, by the hash of its secret."""

    uuid: Field[UUID] = UuidField(primary_key=True)
    name: Field[str] = TextField()
    role: Field[Role] = WordField()
    sha256: Field[str] = TextField(unique=True)
    created_at: Field[datetime] = TimeField(default=utc_now)
    expires_at: Field[datetime | None] = TimeField(null=True)
    last_used_at: Field[datetime | None] = TimeField(null=True)
    revoked_at: Field[datetime | None] = TimeField(null=True)

    class Meta:
        """Name the table."""

        table_name = "token"


Token.add_index(Token.name, unique=True, where=Token.revoked_at.is_null(), name="token_one_name")

MODELS: tuple[type[Record], ...] = (
    Identity,
    Host,
    Vm,
    VmDefinition,
    Content,
    HostFile,
    BackupFile,
    Snapshot,
    VolumeSnapshot,
    Clone,
    Operation,
    RetentionPolicy,
    Event,
    AuditEntry,
    Token,
)
