"""A file system that is really full."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def full_file_system(path: Path, size: str) -> Iterator[Callable[[], None]]:
    """Mount a file system of ``size`` at ``path``, with half of it taken; the call that is yielded frees that half."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    ballast = path / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            file.write(b"x" * 128 * 1024)
        yield ballast.unlink
    finally:
        subprocess.run(["umount", path], check=True)
