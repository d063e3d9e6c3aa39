"""What confining costs for each qemu-img: the same command with and without bounds, in turns.

``python -m tests.bench.confined [ROUNDS]`` prints medians in milliseconds.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from agent.host import image_bounds, process


async def measure(directory: Path, rounds: int) -> tuple[float, float]:
    """Return the median seconds of a call as it is, and of a confined one with the opening of its files."""
    top = directory / "top"
    await process.run(["qemu-img", "create", "-q", "-f", "qcow2", str(top), "1G"])
    argv = ["qemu-img", "check", "-q", "-f", "qcow2", str(top)]
    plain, confined = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        await process.run(argv)
        between = time.perf_counter()
        with image_bounds.opened([directory], [top]) as bounds:
            await process.run(argv, bounds=bounds)
        plain.append(between - began)
        confined.append(time.perf_counter() - between)
    return statistics.median(plain), statistics.median(confined)


def main() -> None:
    """Print both and their difference."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    with tempfile.TemporaryDirectory() as directory:
        plain, confined = asyncio.run(measure(Path(directory), rounds))
    told = f"{1e3 * plain:.1f} ms as it is, {1e3 * confined:.1f} ms confined: {1e3 * (confined - plain):.1f} ms"
    sys.stdout.write(f"qemu-img check, median of {rounds}: {told}\n")


if __name__ == "__main__":
    main()
