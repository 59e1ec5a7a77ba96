"""The `entrocraft` command."""

from entrocraft.cli.main import main

__all__ = ["main"]
