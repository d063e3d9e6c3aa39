"""The agent's HTTP surface: parse, call, render."""
