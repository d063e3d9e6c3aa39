"""The operator's command, ``coldframe``: a client of the controller's API and nothing else."""


def main() -> None:
    """Run ``coldframe`` with the process's arguments and exit."""
    import sys  # noqa: PLC0415 - the package itself stays free of imports

    from controller import packages  # noqa: PLC0415 - see above

    packages.check()
    from controller.cli.app import run  # noqa: PLC0415 - after the check, and only when a command is run

    sys.exit(run(sys.argv[1:]))
