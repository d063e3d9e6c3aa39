"""``coldframe snapshot``: take, look at, go back to and delete."""

from typing import Annotated
from uuid import uuid4

import typer

from agent.wire.clone import CloneMode, CloneSnapshot, TpmChoice
from agent.wire.fleet import Vm
from agent.wire.operation import Operation
from agent.wire.snapshot import CreateSnapshot, RevertSnapshot, Snapshot
from agent.wire.transaction import HostFilesPolicy
from controller.cli.client import path
from controller.cli.lookup import snapshot_uuid
from controller.cli.session import Session, command
from controller.cli.text import facts, print_lines, printable, size, table, when
from controller.cli.tree import draw
from controller.cli.vm import VmArgument
from controller.cli.waiting import result_id, settle

app = typer.Typer(help="Whole snapshots: disks, NVRAM and TPM.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="UUID, the beginning of it, or VM/NAME.", metavar="ID")]


@command(app, "create", waits=True)
def create(  # noqa: PLR0917 - one parameter for each option of the command
    session: Session,
    vm: VmArgument,
    name: Annotated[str | None, typer.Argument(help="A name; the time is the default.", metavar="NAME")] = None,
    description: Annotated[str, typer.Option(help="Free text.", metavar="TEXT")] = "",
    label: Annotated[list[str] | None, typer.Option(help="A label; may be repeated.", metavar="KEY=VALUE")] = None,
    host_files: Annotated[
        HostFilesPolicy, typer.Option(help="Whether NVRAM and TPM must, should or need not be held.")
    ] = "required",
    exclude: Annotated[
        list[str] | None, typer.Option(help="A disk to leave out; may be repeated.", metavar="TARGET")
    ] = None,
) -> None:
    """Take a snapshot of a VM that is shut off."""
    uuid = uuid4()
    body = CreateSnapshot(
        name=name,
        description=description,
        labels=labels_of(label or []),
        host_files=host_files,
        exclude=exclude or [],
        uuid=uuid,
    )
    answer = session.client.change("POST", path("vms", vm, "snapshots"), Operation, body, key=str(uuid))

    def show_made(ended: Operation) -> None:
        made = session.client.get(path("snapshots", result_id(ended, "snapshot")), Snapshot)
        session.show(made, lambda: _tell_made(session, made))

    settle(session, answer, show_made)


@command(app, "list")
def list_(
    session: Session, vm: Annotated[str | None, typer.Argument(help="Only this VM's.", metavar="VM")] = None
) -> None:
    """List snapshots, of one VM or of all."""
    found = session.client.items(path("vms", vm, "snapshots") if vm else path("snapshots"), Snapshot)
    rows = [
        (
            "*" if one.current else " ",
            one.name,
            one.vm_name,
            one.uuid,
            when(one.created_at),
            one.state,
            one.host_files.state,
            len(one.volumes),
        )
        for one in found
    ]
    headings = (" ", "NAME", "VM", "UUID", "CREATED", "STATE", "HOST FILES", "DISKS")
    session.show(found, lambda: table(session.out, headings, rows))


@command(app, "tree")
def tree(session: Session, vm: VmArgument) -> None:
    """Draw a VM's snapshots as a tree, with what each holds and where the VM stands."""
    found = session.client.items(path("vms", vm, "snapshots"), Snapshot)
    session.show(found, lambda: print_lines(session.out, draw(session.client.get(path("vms", vm), Vm), found)))


@command(app, "show")
def show(session: Session, id: Id) -> None:
    """Show one snapshot."""
    found = session.client.get(path("snapshots", str(snapshot_uuid(session.client, id))), Snapshot)
    session.show(found, lambda: _print(session, found))


@command(app, "revert", waits=True)
def revert(
    session: Session,
    id: Id,
    undo_point: Annotated[
        bool, typer.Option("--undo-point/--no-undo-point", help="Keep the present state as an automatic snapshot.")
    ] = True,
    volume: Annotated[
        list[str] | None,
        typer.Option(help="Revert this disk alone and leave host files; may be repeated.", metavar="TARGET"),
    ] = None,
) -> None:
    """Put a VM that is shut off back to a snapshot."""
    uuid = str(snapshot_uuid(session.client, id))
    body = RevertSnapshot(undo_point=undo_point, volumes=volume or None)
    answer = session.client.change("POST", path("snapshots", uuid, "revert"), Operation, body, key=str(uuid4()))

    settle(session, answer, lambda ended: session.show(ended, lambda: _tell_reverted(session, uuid, ended)))


@command(app, "clone", waits=True)
def clone(
    session: Session,
    id: Id,
    names: Annotated[list[str], typer.Argument(help="Names of the new VMs.", metavar="NAME")],
    mode: Annotated[CloneMode, typer.Option(help="Overlays on the frozen disks, or copies of them.")] = "linked",
    tpm: Annotated[TpmChoice, typer.Option(help="A new TPM, or the snapshot's with its keys.")] = "reset",
) -> None:
    """Make new VMs of a snapshot, each with a name, UUID, network addresses and NVRAM of its own."""
    uuid = str(snapshot_uuid(session.client, id))
    body = CloneSnapshot(names=names, mode=mode, tpm=tpm)
    answer = session.client.change("POST", path("snapshots", uuid, "clone"), Operation, body, key=str(uuid4()))

    def show_made(ended: Operation) -> None:
        made = [session.client.get(path("vms", one["vm"]), Vm) for one in ended.result["clones"]]
        session.show(made, lambda: _tell_cloned(session, ended))

    settle(session, answer, show_made)


@command(app, "ungroup", waits=True)
def ungroup(session: Session, id: Id) -> None:
    """Give up a snapshot's host files; its frozen disks stay."""
    uuid = snapshot_uuid(session.client, id)
    answer = session.client.act("POST", path("snapshots", str(uuid), "ungroup"))

    def tell() -> None:
        after = session.client.get(path("snapshots", str(uuid)), Snapshot)
        session.show(
            after, lambda: session.out.print(f"Snapshot {uuid} is ungrouped: its disks stay, its host files are gone")
        )

    if answer is None:
        tell()
    else:
        settle(session, answer, lambda _ended: tell())


@command(app, "delete", waits=True)
def delete(session: Session, id: Id) -> None:
    """Delete a snapshot: merge its disks away, then drop its host files."""
    uuid = snapshot_uuid(session.client, id)
    answer = session.client.change("DELETE", path("snapshots", str(uuid)), Operation)
    settle(
        session,
        answer,
        lambda ended: session.show(ended, lambda: _tell(session, f"Snapshot {uuid} is deleted", ended)),
    )


def labels_of(given: list[str]) -> dict[str, str]:
    """Return labels as they are given on the command line. Raises BadParameter."""
    labels = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{one!r} is not KEY=VALUE", param_hint="--label")
        labels[key] = value
    return labels


def _tell_made(session: Session, made: Snapshot) -> None:
    files = made.host_files
    held = [one for one in files.expected if one not in files.missing and files.state != "none"]
    parts = ", ".join([*(one.target for one in made.volumes), *held])
    session.out.print(f"Snapshot {printable(made.name)} ({made.uuid}) of {printable(made.vm_name)} holds {parts}")
    if files.state != "complete":
        session.out.print(f"Its host files are {files.state}: {printable(files.reason)}")
    if made.excluded:
        session.out.print(f"Left out: {' '.join(map(printable, made.excluded))}")


def _tell_cloned(session: Session, ended: Operation) -> None:
    for one in ended.result["clones"]:
        tpm = "a copy of the TPM" if "tpm" in one["host_files"] else "a new TPM, if it has one"
        session.out.print(f"{printable(one['name'])} ({one['vm']}) is a {one['mode']} clone with {tpm}")
        if one["left_out"]:
            session.out.print(f"Left out: {' '.join(map(printable, one['left_out']))}")
    for remark in ended.result.get("remarks", []):
        session.out.print(printable(remark))


def _tell_reverted(session: Session, uuid: str, ended: Operation) -> None:
    """Say what went back and what did not: a disk alone, a host file that was kept or taken away."""
    result = ended.result
    if result.get("host_files") == "left-alone":
        disks = ", ".join(map(printable, result.get("volumes", [])))
        _tell(session, f"Reverted {disks} to snapshot {uuid}; NVRAM and TPM were left alone", ended)
    else:
        _tell(session, f"Reverted to snapshot {uuid}", ended)
        for key, words in (("removed", "Taken away, as the VM had none then"), ("kept", "Not in the snapshot, kept")):
            if result.get(key):
                session.out.print(f"{words}: {', '.join(map(printable, result[key]))}")
    if result.get("undo_point"):
        undo = printable(result["undo_point"])
        session.out.print(f"The state before is kept; to go back to it: coldframe snapshot revert {undo}")


def _tell(session: Session, text: str, ended: Operation) -> None:
    """Print what was done, and what the operation remarks on it."""
    session.out.print(text)
    for remark in ended.result.get("remarks", []):
        session.out.print(printable(remark))


def _print(session: Session, one: Snapshot) -> None:
    files = one.host_files
    facts(
        session.out,
        [
            ("name", one.name),
            ("uuid", one.uuid),
            ("vm", f"{one.vm_name} ({one.vm})"),
            ("created", when(one.created_at)),
            ("state", one.state),
            ("parent", one.parent),
            ("current", "yes" if one.current else "no"),
            ("automatic", "yes" if one.automatic else "no"),
            ("protected", "yes" if one.protected else "no"),
            ("description", one.description),
            ("labels", " ".join(f"{key}={value}" for key, value in sorted(one.labels.items()))),
            ("host files", f"{files.state}; expected {' '.join(files.expected) or 'none'}"),
            *([("missing", f"{' '.join(files.missing)}: {files.reason}")] if files.missing else []),
            ("backup files", " ".join(map(str, one.backup_files))),
            ("excluded", " ".join(one.excluded)),
        ],
    )
    session.out.print()
    rows = [(v.target, v.host, size(v.virtual_size_bytes), size(v.allocated_bytes), v.path) for v in one.volumes]
    table(session.out, ("DISK", "HOST", "SIZE", "ALLOCATED", "FROZEN FILE"), rows)
