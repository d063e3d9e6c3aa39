"""Portable archives of snapshots: their format (docs/archive-format.md), written and read as streams."""
