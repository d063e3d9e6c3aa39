"""``coldframe vm``: the virtual machines of all hosts."""

from typing import Annotated

import typer

from agent.wire.fleet import Vm
from agent.wire.operation import Operation
from controller.cli.client import path
from controller.cli.session import Session, command
from controller.cli.text import facts, printable, size, table, when
from controller.cli.waiting import settle

app = typer.Typer(help="Virtual machines.", no_args_is_help=True)

VmArgument = Annotated[str, typer.Argument(help="The VM's name or UUID.", metavar="VM")]


@command(app, "list")
def list_(
    session: Session, host: Annotated[str | None, typer.Option(help="Only this host's.", metavar="NAME")] = None
) -> None:
    """List the VMs."""
    vms = session.client.items(path("vms"), Vm, **({"host": host} if host else {}))
    rows = [(one.name, one.uuid, one.host, one.state, one.firmware, one.tpm, len(one.disks)) for one in vms]
    session.show(vms, lambda: table(session.out, ("NAME", "UUID", "HOST", "STATE", "FIRMWARE", "TPM", "DISKS"), rows))


@command(app, "show")
def show(session: Session, vm: VmArgument) -> None:
    """Show one VM with its disks and host files."""
    found = session.client.get(path("vms", vm), Vm)
    session.show(found, lambda: _print(session, found))


@command(app, "sync")
def sync(session: Session, vm: VmArgument) -> None:
    """Fetch the VM's host files from its host now."""
    answer = session.client.change("POST", path("vms", vm, "sync"), Operation)
    settle(
        session,
        answer,
        lambda ended: session.show(ended, lambda: session.out.print(f"Host files of {printable(vm)} are synced")),
    )


@command(app, "forget")
def forget(session: Session, vm: VmArgument) -> None:
    """Forget a VM: its records, its snapshots' records and all backup files go. Its disks stay."""
    found = session.client.get(path("vms", vm), Vm)
    answer = session.client.act("DELETE", path("vms", str(found.uuid)))

    def tell() -> None:
        session.show(found, lambda: session.out.print(f"VM {printable(found.name)} is forgotten; its disks were left"))

    if answer is None:
        tell()
    else:
        settle(session, answer, lambda _ended: tell())


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
