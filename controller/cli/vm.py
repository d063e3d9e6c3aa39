"""``coldframe vm``: the virtual machines of all hosts."""

from enum import Enum
from typing import Annotated
from uuid import UUID

import typer

from agent.wire.backup_file import RestoreHostFiles
from agent.wire.fleet import Host, Vm, VmVolume
from agent.wire.operation import Operation
from agent.wire.place import PlaceVm
from controller.cli.client import path
from controller.cli.lookup import snapshot_uuid
from controller.cli.session import Session, command
from controller.cli.text import facts, printable, size, table, when
from controller.cli.waiting import settle

app = typer.Typer(help="Virtual machines.", no_args_is_help=True)


class HostFileChoice(Enum):
    """``wire.host_file.HostFileType`` for an option that may be repeated, which takes no Literal."""

    NVRAM = "nvram"
    TPM = "tpm"


VmArgument = Annotated[str, typer.Argument(help="The VM's name or UUID.", metavar="VM")]


@command(app, "list")
def list_(
    session: Session, host: Annotated[str | None, typer.Option(help="Only this host's.", metavar="NAME")] = None
) -> None:
    """List the VMs."""
    if host is not None:
        session.client.get(path("hosts", host), Host)  # a misspelt one is not found, rather than without VMs
    vms = session.client.items(path("vms"), Vm, **({"host": host} if host else {}))
    rows = [(one.name, one.uuid, one.host, one.state, one.firmware, one.tpm, len(one.disks)) for one in vms]
    session.show(vms, lambda: table(session.out, ("NAME", "UUID", "HOST", "STATE", "FIRMWARE", "TPM", "DISKS"), rows))


@command(app, "show")
def show(session: Session, vm: VmArgument) -> None:
    """Show one VM with its disks and host files."""
    found = session.client.get(path("vms", vm), Vm)
    session.show(found, lambda: _print(session, found))


@command(app, "volumes")
def volumes(session: Session, vm: VmArgument) -> None:
    """List a VM's disks with every file of their chains: depth, sizes and the snapshot that owns each file."""
    found = session.client.items(path("vms", vm, "volumes"), VmVolume)
    session.show(found, lambda: _print_volumes(session, found))


@command(app, "sync", waits=True)
def sync(session: Session, vm: VmArgument) -> None:
    """Fetch the VM's host files from its host now."""
    answer = session.client.change("POST", path("vms", vm, "sync"), Operation)
    settle(session, answer, lambda ended: session.show(ended, lambda: _tell_synced(session, vm, ended)))


@command(app, "place")
def place(
    session: Session,
    vm: VmArgument,
    host: Annotated[str, typer.Argument(help="The host that it shall be on.", metavar="HOST")],
    force: Annotated[
        bool, typer.Option("--force", help="Where its present host does not answer, use copies that may be old.")
    ] = False,
) -> None:
    """Move a VM that is off to another host on the same storage, with its NVRAM and TPM; settles a conflict too."""
    answer = session.client.change("POST", path("vms", vm, "place"), Operation, PlaceVm(host=host, force=force))
    settle(session, answer, lambda ended: session.show(ended, lambda: _tell_placed(session, vm, ended)))


def _tell_placed(session: Session, vm: str, ended: Operation) -> None:
    session.out.print(f"{printable(vm)} is on {printable(ended.result['host'])}")
    for remark in ended.result.get("remarks", []):
        session.out.print(printable(remark))


@command(app, "restore-host-files")
def restore_host_files(
    session: Session,
    vm: VmArgument,
    type: Annotated[
        list[HostFileChoice] | None,
        typer.Option(help="Replace this one, nvram or tpm, also where it is not lost; may be repeated."),
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Take a snapshot's, not the newest copy.", metavar="SNAPSHOT")
    ] = None,
    backup: Annotated[UUID | None, typer.Option(help="Take this backup file.", metavar="ID")] = None,
) -> None:
    """Put NVRAM or TPM state back that was lost. What is replaced is kept as backup files."""
    source = None if from_ is None else snapshot_uuid(session.client, from_)
    body = RestoreHostFiles(types=[one.value for one in type or []] or None, snapshot=source, backup_file=backup)
    answer = session.client.change("POST", path("vms", vm, "restore-host-files"), Operation, body)
    settle(session, answer, lambda ended: session.show(ended, lambda: _tell_restored(session, vm, ended)))


def _tell_restored(session: Session, vm: str, ended: Operation) -> None:
    restored = " and ".join(map(printable, ended.result.get("restored", [])))
    if not restored:
        session.out.print(f"{printable(vm)} has all its host files; name one with --type to replace it")
        return
    session.out.print(f"Restored {restored} of {printable(vm)}")
    if kept := ended.result.get("kept_as"):
        session.out.print(f"What was replaced is kept: coldframe backup list --owner {printable(kept)}")


def _tell_synced(session: Session, vm: str, ended: Operation) -> None:
    """Say what was copied and what was not: a VM that runs is only looked at, and a file may be missing."""
    copied, failed = ended.result.get("host_files", {}), ended.result.get("failed", [])
    if ended.result.get("skipped"):
        session.out.print(f"Nothing was copied: {printable(ended.result['skipped'])}")
        return
    for one in failed:
        session.out.print(f"The {printable(one['type'])} was not copied: {printable(one['reason'])}")
    if copied or not failed:
        held = f": {', '.join(map(printable, copied))}" if copied else ""
        session.out.print(f"Host files of {printable(vm)} are synced{held}")


@command(app, "forget")
def forget(
    session: Session,
    vm: VmArgument,
    disks: Annotated[bool, typer.Option("--disks", help="Remove its image files too, once it is undefined.")] = False,
) -> None:
    """Forget a VM: its records, its snapshots' records and all backup files go. Its disks stay unless asked for."""
    found = session.client.get(path("vms", vm), Vm)
    session.client.act("DELETE", path("vms", str(found.uuid)) + ("?disks=true" if disks else ""))
    became = "removed" if disks else "left"
    session.show(found, lambda: session.out.print(f"VM {printable(found.name)} is forgotten; its disks were {became}"))


def _print(session: Session, vm: Vm) -> None:
    facts(
        session.out,
        [
            ("name", vm.name),
            ("uuid", vm.uuid),
            ("host", vm.host),
            ("state", f"{vm.state}, with saved memory" if vm.managed_save else vm.state),
            ("firmware", vm.firmware),
            ("tpm", vm.tpm),
            ("stands on", vm.current_snapshot),
            *([("conflict", vm.conflict)] if vm.conflict else []),
            *(
                [("cloned from", f"snapshot {vm.clone.snapshot}, {vm.clone.mode}, TPM {vm.clone.tpm}")]
                if vm.clone
                else []
            ),
        ],
    )
    session.out.print()
    disks = [
        (
            one.target,
            one.format,
            size(one.virtual_size_bytes),
            one.chain_depth,
            one.path,
            one.excluded_because or one.problem,
        )
        for one in vm.disks
    ]
    table(session.out, ("DISK", "FORMAT", "SIZE", "FILES", "TOP FILE", "NOT COVERED BECAUSE"), disks)
    if vm.host_files:
        session.out.print()
        files = [
            (one.type, size(one.size_bytes), when(one.synced_at), when(one.dirty_since), one.reason)
            for one in vm.host_files
        ]
        table(session.out, ("HOST FILE", "SIZE", "SYNCED", "DIRTY SINCE", "PROBLEM"), files)


def _print_volumes(session: Session, found: list[VmVolume]) -> None:
    """Print one line for each file, the top file of each disk first."""
    rows: list[tuple[object, ...]] = []
    for one in found:
        if not one.chain:
            rows.append((one.target, "-", size(one.virtual_size_bytes), "-", one.problem or one.excluded_because, ""))
        for number, file in enumerate(one.chain):
            owners = " ".join(map(str, file.snapshots)) or ("top" if number == 0 else "-")
            place = f"{number + 1} of {one.depth}"
            rows.append(
                (one.target, place, size(file.virtual_size_bytes), size(file.allocated_bytes), file.path, owners)
            )
    table(session.out, ("DISK", "FILE", "SIZE", "ALLOCATED", "PATH", "FROZEN FOR"), rows)
