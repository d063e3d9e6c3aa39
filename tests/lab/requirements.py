"""What a private libvirt host needs from the machine, said in words when it is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.paths import ovmf

#: Command: the package that brings it, on Debian and on Fedora.
COMMANDS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ip": "iproute2 (iproute)",
    "libvirtd": "libvirt-daemon-system (libvirt-daemon)",
    "virtlogd": "libvirt-daemon-system (libvirt-daemon-log)",
    "virsh": "libvirt-clients (libvirt-client)",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils (qemu-img)",
    "qemu-io": "qemu-utils (qemu-img)",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
    "tpm2_nvwrite": "tpm2-tools",
    "mformat": "mtools",
    "zstd": "zstd",
}
#: Where libraries are looked for, without asking the loader.
LIBRARY_DIRS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> list[str]:
    """Return what is missing, one line each; an empty list when a private host can be made here."""
    lines = [
        f"command {command} is not installed; package: {package}"
        for command, package in COMMANDS.items()
        if shutil.which(command) is None and shutil.which(command, path=SYSTEM_PATH) is None
    ]
    try:
        ovmf()
    except LabError as err:
        lines.append(f"{err}; package: ovmf (edk2-ovmf)")
    if not any(list(Path(place).glob("libtss2-tcti-swtpm.so*")) for place in LIBRARY_DIRS):
        lines.append("the swtpm TCTI of tpm2-tss is not installed; package: libtss2-tcti-swtpm0 (tpm2-tss)")
    return lines + _privileges()


def _privileges() -> list[str]:
    if os.geteuid() != 0:
        return ["not root: namespaces, mounts and libvirtd need it; try sudo"]
    if shutil.which("unshare") is None:
        return []
    probe = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=20, check=False)
    return [] if done.returncode == 0 else [f"root may not make namespaces here: {done.stderr.strip()}"]


def main() -> int:
    """Print what is missing and return 1, or return 0: ``python -m tests.lab.requirements``."""
    lines = missing()
    for line in lines:
        sys.stderr.write(f"missing: {line}\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
