"""The agent's settings, each with its default and the reason for it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from agent.web import settings
from agent.web.serving import Tls, check_listen, tls_from

DEFAULT_FILE = Path("/etc/coldframe/agent.toml")
ENV_PREFIX = "COLDFRAME_AGENT_"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set. Paths are made absolute when they are read."""

    # Loopback: an agent that is reachable from outside needs TLS, and that needs a decision. Empty: no TCP.
    listen: str = "127.0.0.1:7701"
    # For the commands on this host and for a controller beside the agent.
    socket: Path = Path("/run/coldframe/agent.sock")
    # The secret that the controller presents; mode 0600. No default secret: each host has its own.
    token_file: Path = Path("/etc/coldframe/agent.token")
    # Off by default; both must be set to listen on an address that other machines can reach.
    tls_cert: Path | None = None
    tls_key: Path | None = None
    # With it only clients whose certificate comes from this CA get as far as the token.
    tls_client_ca: Path | None = None

    # The system's libvirt: session domains have neither the hook nor swtpm's system directory.
    libvirt_uri: str = "qemu:///system"
    # Calls at once. libvirt serves 20 clients' requests by default, and others want some of them.
    libvirt_threads: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4
    # libvirt takes about 4 s where it asks QEMU for its capabilities anew; 15 s is above that and below what the
    # controller's client waits for (30 s), so that it hears the agent's reason and not silence.
    libvirt_deadline_s: Annotated[float, msgspec.Meta(gt=0, le=25)] = 15.0

    # Also what the hook uses where it has no 50-coldframe.conf beside it.
    state_dir: Path = Path("/var/lib/coldframe/agent")
    # libvirt's default pool. An image outside is refused: a guest writes its own disks, and their headers name files.
    allowed_image_dirs: Annotated[list[Path], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: [Path("/var/lib/libvirt/images")]
    )
    # Where libvirt puts NVRAM that the domain XML does not name.
    nvram_dir: Path = Path("/var/lib/libvirt/qemu/nvram")
    # Where libvirt keeps TPM state: one directory for each UUID.
    swtpm_dir: Path = Path("/var/lib/libvirt/swtpm")
    # libvirt's hooks directory, or its qemu.d.
    hook_dir: Path = Path("/etc/libvirt/hooks")

    # Opening a chain takes about 1 ms a file, and QEMU keeps each open: a snapshot a day for a quarter of a year.
    max_chain_depth: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    # NVRAM has 540,672 bytes and a TPM about 6,000; a UEFI with many keys stays below 4 MiB.
    host_file_limit_bytes: Annotated[int, msgspec.Meta(ge=4096, le=1 << 26)] = 16 << 20
    # Kept free on each file system that new files go to, so that the running VMs there do not stop.
    reserve_bytes: Annotated[int, msgspec.Meta(ge=0)] = 64 << 20
    # No VM is blocked longer than this by a controller that died, whatever lease it asked for.
    max_lease_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 3_600.0
    # How long a controller that was away can still ask how a transaction ended.
    outcome_retention_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 30

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def tls(self) -> Tls | None:
        """The TLS files, or None where TLS is off."""
        return tls_from(self.tls_cert, self.tls_key, self.tls_client_ca)

    @property
    def hook_file(self) -> Path:
        """Where the hook is installed."""
        directory = self.hook_dir if self.hook_dir.name == "qemu.d" else self.hook_dir / "qemu.d"
        return directory / "50-coldframe"

    def check(self) -> None:
        """Refuse what can be seen to be wrong without touching anything. Raises SettingsError, ListenRefused."""
        tls = self.tls
        if self.listen:
            check_listen(self.listen, tls)


def load(
    config: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any] | None = None
) -> settings.Loaded[Config]:
    """Return the settings in force, checked. Raises SettingsError, ListenRefused."""
    loaded = settings.load(
        Config, default_file=DEFAULT_FILE, env_prefix=ENV_PREFIX, environ=environ, config=config, flags=flags
    )
    loaded.settings.check()
    return settings.Loaded(_settled(loaded.settings), loaded.sources)


def _settled(config: Config) -> Config:
    """Follow the links of the directories that are ours to choose, once: from here on none is followed on any path.

    ``nvram_dir`` and ``swtpm_dir`` stay as libvirt's definitions name them.
    """
    return msgspec.structs.replace(
        config,
        state_dir=_real(config.state_dir),
        hook_dir=_real(config.hook_dir),
        allowed_image_dirs=[_real(directory) for directory in config.allowed_image_dirs],
    )


def _real(directory: Path) -> Path:
    return Path(os.path.realpath(directory))
