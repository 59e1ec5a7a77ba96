"""`entrocraft compare [CONFIG.yaml] [--key value ...]`."""

from __future__ import annotations

from entrocraft.lab.parsing import config_from_arguments
from entrocraft.lab.training.comparison import CompareConfig

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    """Run methods x seeds and say where the report is."""
    description = "Train with several methods and seeds on the same work; report them together."
    config = config_from_arguments(CompareConfig, "compare", description, arguments)
    from entrocraft.lab.cli.console import quiet_console
    from entrocraft.lab.training.comparison import compare

    console = quiet_console()
    page = compare(config, console)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
