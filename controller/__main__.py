"""The entry point of ``coldframe-controller``."""

import sys

from controller import packages


def main() -> None:
    """Run ``coldframe-controller`` with the process's arguments and exit."""
    packages.check()
    from controller.commands import run  # noqa: PLC0415 - loads the agent's package, so it comes after the check

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
