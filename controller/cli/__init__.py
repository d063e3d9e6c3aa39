"""The operator's command, ``coldframe``."""
