"""The libvirt hook as a file: is it in force, and where does it find the agent's state directory."""

import os
import stat
from pathlib import Path

from agent.host import files
from agent.wire.host import HookState

#: The script says which agreement with the agent it keeps (names and lines of the files in the state directory) in
#: a line ``# coldframe-hook: 1``. The agent's package does not hold the script, so it compares this and not bytes.
AGREEMENT = 1
_MARK = b"# coldframe-hook: "
_LIMIT_BYTES = 256 * 1024


def state(path: Path) -> HookState:
    """Say whether libvirt will call a hook that this agent understands. Blocks; reads one small file.

    A hook that came after libvirtd was started, which libvirtd then does not call, cannot be told from here.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            script = file.read(_LIMIT_BYTES)
    except OSError:
        return "missing"
    if not stat.S_ISREG(mode):
        return "missing"
    if not mode & 0o111:
        return "not-executable"
    return "ok" if _MARK + str(AGREEMENT).encode() in script.split(b"\n") else "different"


def write_conf(path: Path, state_dir: Path) -> bool:
    """Tell the hook at ``path`` where the state directory is, in ``<path>.conf``; return whether it had to be told.

    Nothing happens where the directory of hooks does not exist. Raises StorageFailed, NoSpace.
    """
    conf = path.with_name(path.name + ".conf")
    text = f"state_dir={state_dir}\n".encode()
    if not path.parent.is_dir() or _contents(conf) == text:
        return False
    # Readable by all and executable by none: libvirt would run it.
    files.write_atomic(conf, text, mode=0o644)
    return True


def _contents(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def told_state_dir(path: Path) -> Path | None:
    """Return the state directory that ``<path>.conf`` names, or None where it names none. Blocks."""
    lines = (_contents(path.with_name(path.name + ".conf")) or b"").decode(errors="replace").splitlines()
    named = [line.removeprefix("state_dir=") for line in lines if line.startswith("state_dir=/")]
    return Path(named[-1]) if named else None
