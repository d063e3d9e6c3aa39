"""The controller's settings, each with its default and the reason for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from agent.web import settings
from agent.web.errors import SettingsError
from agent.web.serving import Tls, check_listen, tls_from

DEFAULT_FILE = Path("/etc/coldframe/controller.toml")
ENV_PREFIX = "COLDFRAME_CONTROLLER_"

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000)]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set. Paths are made absolute when they are read."""

    # Loopback: a controller that is reachable from outside needs TLS, and that needs a decision.
    listen: str = "127.0.0.1:7700"
    # SQLite serves one controller and some hundred hosts; postgresql://… where a database server is kept anyway.
    database: str = "sqlite:////var/lib/coldframe/controller.db"
    # A secret that is always an admin, so that a deployment can bring its own first token; mode 0600. Off by
    # default: `coldframe-controller token create` makes tokens that have a name, an expiry and can be revoked.
    token_file: Path | None = None
    # The key for contents at rest. Not read by this version, which refuses to start rather than store them plainly.
    encryption_key_file: Path | None = None
    # Off by default; both must be set to listen on an address that other machines can reach.
    tls_cert: Path | None = None
    tls_key: Path | None = None
    # With it only clients whose certificate comes from this CA get as far as the token.
    tls_client_ca: Path | None = None

    # Operations at once on one host: merges are bound by its disks, more of them only make each slower.
    per_host_limit: _Count = 4
    # How long an agent keeps a transaction of ours without hearing from us: no VM is blocked longer by our death.
    lease_s: Annotated[float, msgspec.Meta(ge=5, le=3_600)] = 120.0
    # A host whose events are quiet is looked at this often all the same, should an event have been lost.
    poll_s: _Seconds = 60.0
    # A long poll of an agent's events ends after so long; below what proxies cut (60 s is common).
    event_wait_s: Annotated[float, msgspec.Meta(gt=0, le=50)] = 25.0
    # After a failure the next try comes after 1 s, then twice as late each time, up to this.
    retry_max_s: _Seconds = 30.0

    # Retention policies are applied so often, and after each snapshot: the smallest period that they know is an hour.
    retention_interval_s: _Seconds = 3_600.0

    # A host file from an agent above this is refused. NVRAM has 540,672 bytes and a TPM about 6,000.
    host_file_limit_bytes: Annotated[int, msgspec.Meta(ge=4096, le=1 << 26)] = 16 << 20
    # Events are trimmed beyond this; at a thousand a day this is a quarter of a year, in some 30 MB.
    events_kept: Annotated[int, msgspec.Meta(ge=1_000)] = 100_000
    # A listener that stays this many events behind is dropped and told so: it can go on from where it was.
    listener_backlog: Annotated[int, msgspec.Meta(ge=10, le=100_000)] = 1_000

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def tls(self) -> Tls | None:
        """The TLS files, or None where TLS is off."""
        return tls_from(self.tls_cert, self.tls_key, self.tls_client_ca)

    def check(self) -> None:
        """Refuse what can be seen to be wrong without touching anything. Raises SettingsError, ListenRefused."""
        check_listen(self.listen, self.tls)
        if self.encryption_key_file is not None:
            reason = "this version cannot encrypt contents at rest; nothing was stored. Remove the key to go on without"
            raise SettingsError(where="encryption_key_file", reason=reason)


def load(
    config: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any] | None = None
) -> settings.Loaded[Config]:
    """Return the settings in force, checked. Raises SettingsError, ListenRefused."""
    loaded = settings.load(
        Config, default_file=DEFAULT_FILE, env_prefix=ENV_PREFIX, environ=environ, config=config, flags=flags
    )
    loaded.settings.check()
    return loaded
