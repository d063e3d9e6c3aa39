"""The guard: the persistent mark that keeps one domain from starting while work on it is under way.

Why a start and a guard exclude each other: the hook's ``prepare`` and ``raise_guard`` each take ``hook.lock``, look
for the other's mark and leave their own before they let go of it. Whoever comes second sees the first, so no pair of
"I set mine, then looked at yours" orderings has to be reasoned about. Between ``prepare`` and ``started`` the hook's
mark stands; from ``started`` on libvirt itself says that the domain is active. So after ``raise_guard`` returns the
caller asks libvirt once whether the domain is active, without the lock: yes means a start that was complete before
the guard, no means that none can happen until ``drop``. libvirt is never asked under the lock: the hook waits for
that lock while libvirt waits for the hook.

A starting mark counts while the boot and the libvirtd that wrote it live. A libvirtd that died in the middle
never finishes that start; one that comes back to a QEMU which was already running calls the domain active.

All methods block, for milliseconds: call them through ``asyncio.to_thread``.
"""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from agent.errors import DomainBusy, DomainStarting, StorageFailed
from agent.host import files
from agent.host.marks import (
    boot_id,
    format_mark,
    hook_lock,
    make_directories,
    process_start,
    read_mark,
    storage,
    write_mark,
)
from agent.wire.base import utc_now
from agent.wire.vm import Guard

#: Stands for the transaction of a guard file that cannot be read. It belongs to nobody; only ``release`` removes it.
UNKNOWN = UUID(int=0)


class Guards:
    """The guards of one host. Every method may raise StorageFailed; those that decide, HookLockHeld."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._guards = state_dir / "guards"
        self._starting = state_dir / "starting"
        self._accept_blank = state_dir / "accept-blank"
        make_directories(state_dir, "guards", "starting", "accept-blank", "refused")

    def raise_guard(self, vm: UUID, name: str, transaction: UUID, kind: str) -> None:
        """Keep ``vm`` from starting until ``drop``; the guard survives a reboot once this returns.

        Raises DomainBusy where another transaction holds the guard and DomainStarting where a start has passed the
        hook. The same transaction may call again. The caller then asks libvirt whether the domain is active.
        """
        values = {"transaction": str(transaction), "kind": kind, "since": _format(utc_now()), "name": name}
        staged = self._staged(vm, transaction)
        files.write_staged(staged, format_mark(values))  # the fsync is slow, so it comes before the lock
        try:
            with hook_lock(self._state_dir):
                self._decide(vm, name, transaction, staged)
        finally:
            with storage("removing", staged):
                staged.unlink(missing_ok=True)
        files.fsync_directory(self._guards)

    def _decide(self, vm: UUID, name: str, transaction: UUID, staged: Path) -> None:
        if self._refuse_another(vm, name, transaction) is not None:
            return
        if self.is_starting(vm):
            raise DomainStarting(name=name)
        with storage("writing", self._guards / str(vm)):
            (self._starting / str(vm)).unlink(missing_ok=True)  # what is left here is stale
            staged.replace(self._guards / str(vm))

    def _refuse_another(self, vm: UUID, name: str, transaction: UUID) -> Guard | None:
        """Return the transaction's own guard, if it has one."""
        held = self._held(vm)
        if held is not None and held.transaction != transaction:
            raise DomainBusy(name=name, kind=held.kind, transaction=held.transaction, since=_format(held.since))
        return held

    def _staged(self, vm: UUID, transaction: UUID) -> Path:
        """Return the name before the rename: the same for the same transaction, so ``drop`` finds a dead one's."""
        return files.staged_path(self._guards / str(vm), str(transaction))

    def drop(self, vm: UUID, transaction: UUID) -> None:
        """Let ``vm`` start again. No guard is fine; another transaction's raises DomainBusy and stays."""
        with hook_lock(self._state_dir):
            self._refuse_another(vm, str(vm), transaction)
            for path in (self._guards / str(vm), self._staged(vm, transaction)):
                with storage("removing", path):
                    path.unlink(missing_ok=True)
        files.fsync_directory(self._guards)

    def let_go(self, vm: UUID, transaction: UUID) -> None:
        """Drop the guard if it is this transaction's, or what was begun of it; another's stays."""
        held = self._held(vm)
        if held is not None and held.transaction == transaction:
            self.drop(vm, transaction)
            return
        with storage("removing", self._staged(vm, transaction)):
            self._staged(vm, transaction).unlink(missing_ok=True)

    def release(self, vm: UUID) -> Guard | None:
        """Remove whatever guard or starting mark ``vm`` has, whoever left it, and return the guard.

        For the operator's ``coldframe-agent release``: the caller makes sure that no transaction is at work.
        """
        with hook_lock(self._state_dir):
            held = self.get(vm)
            for path in (self._guards / str(vm), self._starting / str(vm)):
                with storage("removing", path):
                    path.unlink(missing_ok=True)
        files.fsync_directory(self._guards)
        return held

    def get(self, vm: UUID) -> Guard | None:
        """Return the guard of ``vm``, to be shown. An unreadable one is a guard of the transaction UNKNOWN."""
        try:
            return self._held(vm)
        except StorageFailed:
            return _guard({})

    def _held(self, vm: UUID) -> Guard | None:
        """Return the guard of ``vm``, to decide by. Raises StorageFailed where that cannot be read now.

        A transaction that took its own guard for another's would leave it behind. What is no file at all never can be
        read and is nobody's.
        """
        try:
            values = read_mark(self._guards / str(vm))
        except StorageFailed as err:
            if not isinstance(err.__cause__, IsADirectoryError):
                raise
            values = {}
        return None if values is None else _guard(values)

    def all(self) -> dict[UUID, Guard]:
        """Return every guard on this host by domain."""
        with storage("listing", self._guards):
            names = sorted(path.name for path in self._guards.iterdir())
        found = {vm: self.get(vm) for vm in filter(None, map(_vm_of, names))}
        return {vm: guard for vm, guard in found.items() if guard is not None}

    def is_starting(self, vm: UUID) -> bool:
        """Say whether a start of ``vm`` has passed the hook's ``prepare`` and is neither done nor failed yet."""
        values = read_mark(self._starting / str(vm))
        if values is None or values.get("boot_id") != boot_id():
            return False  # marks are renamed into place, so an unreadable one was torn by a power cut: another boot
        pid = values.get("libvirtd_pid", "")
        start = process_start(int(pid)) if pid.isascii() and pid.isdigit() else None
        return start is not None and start == values.get("libvirtd_start")

    def accept_blank(self, vm: UUID) -> None:
        """Let the next start of ``vm`` through although a host file is missing or empty. Holds for one try."""
        write_mark(self._accept_blank / str(vm), {"since": _format(utc_now())})


def _guard(values: dict[str, str]) -> Guard:
    try:
        return Guard(
            transaction=UUID(values["transaction"]),
            kind=values["kind"],
            since=datetime.fromisoformat(values["since"]).astimezone(UTC),
        )
    except (KeyError, ValueError):
        return Guard(transaction=UNKNOWN, kind="unknown", since=datetime.fromtimestamp(0, UTC))


def _format(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _vm_of(name: str) -> UUID | None:
    try:
        return UUID(name)
    except ValueError:
        return None
