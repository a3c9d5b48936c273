"""The command line: one file per command; each parses, builds a config and calls, and has no logic of its own."""

from headstart.cli.entry import main

__all__ = ["main"]
