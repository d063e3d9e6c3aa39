"""A VM's snapshots drawn as the tree that they are."""

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from rich.text import Text
from rich.tree import Tree

from agent.wire.fleet import Vm
from agent.wire.host_file import HOST_FILE_TYPES, HostFileType
from agent.wire.snapshot import Snapshot
from controller.cli.text import printable, size, when

HERE = "● you are here"
_TITLES: dict[HostFileType, str] = {"nvram": "NVRAM", "tpm": "TPM"}
_STATE_STYLES = {"ready": "green", "failed": "red"}


def draw(vm: Vm, snapshots: Sequence[Snapshot]) -> Tree:
    """Return the tree, oldest first. A snapshot whose parent is gone hangs on the root; every one is drawn once."""
    known = {one.uuid for one in snapshots}
    children: dict[UUID | None, list[Snapshot]] = defaultdict(list)
    for one in sorted(snapshots, key=lambda snapshot: (snapshot.created_at, str(snapshot.uuid))):
        children[one.parent if one.parent in known else None].append(one)
    root = Tree(Text(f"{printable(vm.name)} ({vm.uuid}) on {printable(vm.host)}, {vm.state}", style="bold"))
    # A stack and not recursion: a chain may be as deep as the limit for disks and more.
    waiting = [(root, one) for one in reversed(children[None])]
    if not any(one.current for one in snapshots):
        root.add(Text(HERE, style="bold cyan"))
    while waiting:
        branch, snapshot = waiting.pop()
        node = branch.add(label(snapshot))
        if snapshot.current:
            node.add(Text(HERE, style="bold cyan"))
        waiting += [(node, one) for one in reversed(children[snapshot.uuid])]
    return root


def label(snapshot: Snapshot) -> Text:
    """Return a snapshot's two lines: what it is, and what it holds."""
    text = Text(no_wrap=True)
    text.append(printable(snapshot.name), style="bold")
    text.append(f"  {str(snapshot.uuid)[:8]}  {when(snapshot.created_at)}  ")
    text.append(snapshot.state, style=_STATE_STYLES.get(snapshot.state, "yellow"))
    for flag, style in (("automatic", "dim"), ("protected", "magenta")):
        if getattr(snapshot, flag):
            text.append(f"  {flag}", style=style)
    text.append("\n")
    disks = [f"{printable(one.target)} {size(one.allocated_bytes)}" for one in snapshot.volumes if not one.hidden]
    text.append(" · ".join(disks) or "no disks")
    for type_ in HOST_FILE_TYPES:
        mark, style = _mark(snapshot, type_)
        text.append(" · ")
        text.append(f"{_TITLES[type_]} {mark}", style=style)
    if snapshot.excluded:
        text.append(f" · without {' '.join(map(printable, snapshot.excluded))}", style="yellow")
    if snapshot.host_files.reason:
        text.append(f"\n{snapshot.host_files.state}: {printable(snapshot.host_files.reason)}", style="yellow")
    return text


def _mark(snapshot: Snapshot, type_: HostFileType) -> tuple[str, str]:
    """Return ✔ for held, ✘ for expected and not held, a dash for a VM that had none."""
    files = snapshot.host_files
    if type_ not in files.expected:
        return "–", "dim"  # noqa: RUF001 - a dash for nothing
    if files.state == "none" or type_ in files.missing:
        return "✘", "red"
    return "✔", "green"
