"""What the configuration allows and where things are, as the inner layers are told."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the configuration allows. Sizes in bytes; ``max_chain_depth`` counts files."""

    state_dir: Path
    nvram_dir: Path
    swtpm_dir: Path
    allowed_image_dirs: list[Path]
    max_chain_depth: int = 100
    host_file_limit_bytes: int = 16 << 20
    reserve_bytes: int = 64 << 20
    max_lease_s: float = 3_600.0
    outcome_retention_s: float = 30 * 86_400.0
