"""A VM's TPM while the VM is off: swtpm on its state directory, and tpm2-tools that talk to it.

Both run in namespaces made for one call, so the fixed ports of the TCTI collide with nobody and no process stays.
swtpm runs as the owner of the state, so that libvirt can start the VM afterwards.
"""

import subprocess
from pathlib import Path

from tests.lab.errors import LabError

NOT_FOUND = 44

# $STATE and its owner $OWNER:$GROUP come from outside. /mnt is private to this call; binding the state there reaches
# it below directories that its owner may not enter. As a daemon swtpm has opened its ports when it returns.
PREPARE = """\
ip link set lo up
mount -t tmpfs tmpfs /mnt
mkdir /mnt/state /mnt/work
mount --bind "$STATE" /mnt/state
setpriv --reuid="$OWNER" --regid="$GROUP" --clear-groups swtpm socket --tpm2 --daemon \\
    --tpmstate dir=/mnt/state --flags not-need-init,startup-clear \\
    --server type=tcp,port=2321,bindaddr=127.0.0.1 --ctrl type=tcp,port=2322,bindaddr=127.0.0.1
export TPM2TOOLS_TCTI=swtpm:host=127.0.0.1,port=2321 TSS2_LOG=all+none
has_index() { tpm2_getcap handles-nv-index | grep -qix -- "- $INDEX"; }
"""
# An orderly end, or the TPM counts the next start as a failed one.
FINISH = "tpm2_shutdown -c\n"

WRITE = """\
! has_index || tpm2_nvundefine -Q "$INDEX" -C o
tpm2_nvdefine -Q "$INDEX" -C o -s "$SIZE" -a 'ownerread|ownerwrite|authread|authwrite'
tpm2_nvwrite -Q "$INDEX" -C o -i -
"""
READ = f"""\
has_index || exit {NOT_FOUND}
tpm2_nvread "$INDEX" -C o
"""
EK = """\
tpm2_createek -Q -c /mnt/work/ek.ctx -G ecc -u /mnt/work/ek.pem -f pem
cat /mnt/work/ek.pem
"""


def write_index(state_dir: Path, index: int, data: bytes) -> None:
    """Define an NV index, such as 0x1500016, anew and write ``data``. Raises LabError, also while the VM runs."""
    _run(state_dir, WRITE, {"INDEX": f"0x{index:X}", "SIZE": str(len(data))}, data)


def read_index(state_dir: Path, index: int) -> bytes | None:
    """Return what an NV index holds, or None when it is not defined."""
    return _run(state_dir, READ, {"INDEX": f"0x{index:X}"})


def ek_public(state_dir: Path) -> bytes:
    """Return the public endorsement key as PEM: the same for one TPM always, another for each other TPM."""
    return _run(state_dir, EK, {}) or b""


def _run(state_dir: Path, script: str, facts: dict[str, str], data: bytes = b"") -> bytes | None:
    if not (state_dir / "tpm2-00.permall").exists():
        raise LabError(f"{state_dir} holds no TPM state; start the VM once")
    owner = state_dir.stat()
    facts = {**facts, "STATE": str(state_dir.resolve()), "OWNER": str(owner.st_uid), "GROUP": str(owner.st_gid)}
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*unshare, "sh", "-euc", PREPARE + script + FINISH],
        input=data,
        capture_output=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", **facts},
    )
    if done.returncode == NOT_FOUND:
        return None
    if done.returncode != 0:
        raise LabError(f"TPM at {state_dir}: exit {done.returncode}\n{done.stderr.decode(errors='replace')}")
    return done.stdout


class Tpm:
    """The TPM whose state lies in one directory."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    def write_index(self, index: int, data: bytes) -> None:
        """Define an NV index anew and write it."""
        write_index(self.state_dir, index, data)

    def read_index(self, index: int) -> bytes | None:
        """Return what an NV index holds."""
        return read_index(self.state_dir, index)

    def ek_public(self) -> bytes:
        """Return the public endorsement key."""
        return ek_public(self.state_dir)
