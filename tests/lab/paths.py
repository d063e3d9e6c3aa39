"""Where things are inside a private host, and where this project is."""

import sys
from pathlib import Path

from tests.lab.errors import LabError

#: Replaced by directories of the lab's own: path inside, path below its root.
BINDS = {
    target: target.strip("/")
    for target in (
        "/run",
        "/var/log",
        "/var/cache",
        "/var/lib/libvirt",
        "/var/lib/swtpm-localca",
        "/var/lib/coldframe",
        "/etc/libvirt",
        "/etc/coldframe",
    )
}
IMAGES = Path("/var/lib/libvirt/images")
NVRAM = Path("/var/lib/libvirt/qemu/nvram")
SWTPM = Path("/var/lib/libvirt/swtpm")
HOOK = Path("/etc/libvirt/hooks/qemu.d/50-coldframe")
HOOK_CONF = HOOK.with_name("50-coldframe.conf")
STATE_DIR = Path("/var/lib/coldframe/agent")
LIBVIRT_SOCKET = Path("/run/libvirt/libvirt-sock")

PROJECT = Path(__file__).resolve().parents[2]
PYTHON = Path(sys.executable)

#: Firmware code and the template of its variables, without Secure Boot: Debian and Ubuntu, Fedora, older Debian, Arch.
OVMF = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)


def ovmf() -> tuple[Path, Path]:
    """Return the first pair of firmware and variable template that is installed; raises LabError for none."""
    for code, variables in OVMF:
        if Path(code).exists() and Path(variables).exists():
            return Path(code), Path(variables)
    raise LabError("no OVMF firmware is installed in any of: " + ", ".join(code for code, _ in OVMF))
