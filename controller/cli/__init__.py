"""The operator's command, ``coldframe``: a client of the controller's API and nothing else."""


def main() -> None:
    """Run ``coldframe`` with the process's arguments and exit."""
    import sys  # noqa: PLC0415 - the package itself stays free of imports

    from controller.cli.app import run  # noqa: PLC0415 - so that importing a sibling does not load all commands

    sys.exit(run(sys.argv[1:]))
