"""The only modules that touch the outside, one per tool."""
