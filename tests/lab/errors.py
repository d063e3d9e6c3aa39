"""The one error of the lab."""


class LabError(Exception):
    """Something about a private host went wrong; the text says what, with the output of the command."""
