"""The controller's HTTP surface: parse, call, render."""
