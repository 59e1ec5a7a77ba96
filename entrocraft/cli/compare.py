"""`entrocraft compare CONFIG.yaml [--key value ...]`."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from entrocraft.cli.train import build, quiet_libraries
from entrocraft.training.comparison import CompareConfig, compare

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    """Run methods x seeds and say where the report is."""
    parser = ArgumentParser(
        prog="entrocraft compare",
        usage="entrocraft compare [CONFIG.yaml] [--key value ...]",
        description="Train with several methods and seeds on the same work; report them together.",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_class_arguments(CompareConfig, as_group=False)
    config = build(parser, CompareConfig, arguments)
    quiet_libraries()
    from rich.console import Console

    console = Console()
    page = compare(config, console)
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
