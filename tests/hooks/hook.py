"""The hook as libvirt calls it, and the state directory it works on."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from agent.transactions.expected import Expected
from agent.transactions.guard import Guards

HOOK = Path(__file__).parents[2] / "hooks" / "qemu"
DOMAIN_XML = (Path(__file__).parent / "domain.xml").read_text()
VM = UUID("7fe9bb4c-91a4-4a0e-9a5c-0d3f5c5b1e57")
TRANSACTION = UUID("0f7c2c54-6a63-4a0e-9d0a-6ad2a0f3c0de")
#: All that libvirt 9.0 hands to a hook.
ENVIRONMENT = {"HOME": "/root", "LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass(frozen=True)
class Hook:
    """The hook installed in a directory of its own, and a VM's host files."""

    root: Path
    shell: list[str] = field(default_factory=list)

    @property
    def script(self) -> Path:
        return self.root / "qemu.d" / "50-coldframe"

    @property
    def state(self) -> Path:
        return self.root / "state dir"

    @property
    def nvram_dir(self) -> Path:
        return self.root / "nvram"

    @property
    def tpm_dir(self) -> Path:
        return self.root / "swtpm" / str(VM)

    @property
    def guards(self) -> Guards:
        return Guards(self.state)

    @property
    def accepts_blank(self) -> bool:
        """Whether the next start may find host files missing."""
        return (self.state / "accept-blank" / str(VM)).exists()

    def install(self) -> "Hook":
        """Put the hook, its configuration and an empty state directory in place."""
        self.script.parent.mkdir(parents=True)
        shutil.copy(HOOK, self.script)
        self.script.with_name("50-coldframe.conf").write_text(f"state_dir={self.state}\n")
        self.state.mkdir(mode=0o700)
        return self

    def call(
        self,
        operation: str,
        name: str = "win11",
        xml: str = DOMAIN_XML,
        extra: str = "-",
        env: Mapping[str, str] = ENVIRONMENT,
    ) -> subprocess.CompletedProcess[bytes]:
        """Call the hook as libvirt does."""
        end = {"stopped": "end", "release": "end"}.get(operation, "begin")
        argv = [*self.shell, str(self.script), name, operation, end, extra]
        return subprocess.run(argv, input=xml.encode(), env=env, cwd="/", capture_output=True, timeout=30, check=False)

    def give_host_files(self, name: str = "win11") -> None:
        """Give the VM an NVRAM file and TPM state, and let the agent expect both."""
        self.nvram(name).parent.mkdir(exist_ok=True)
        self.nvram(name).write_bytes(b"nvram")
        (self.tpm_dir / "tpm2").mkdir(parents=True)
        (self.tpm_dir / "tpm2" / ".lock").touch()
        (self.tpm_dir / "tpm2" / "tpm2-00.permall").write_bytes(b"tpm")
        Expected(self.state).write(VM, name, None, self.nvram_dir, self.tpm_dir)

    def nvram(self, name: str = "win11") -> Path:
        return self.nvram_dir / f"{name}_VARS.fd"

    def notes(self) -> list[dict[str, str]]:
        """Return the spooled events in order."""
        spool = self.state / "spool"
        paths = sorted(path for path in spool.glob("[0-9]*")) if spool.exists() else []
        return [dict(line.split("=", 1) for line in path.read_text().splitlines()) for path in paths]

    def types(self) -> list[str]:
        return [note["type"] for note in self.notes()]

    def starting(self) -> bool:
        return (self.state / "starting" / str(VM)).exists()
