"""The `entrocraft` command."""

from entrocraft.lab.cli.main import main

__all__ = ["main"]
