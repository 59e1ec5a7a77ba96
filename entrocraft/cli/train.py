"""`entrocraft train [CONFIG.yaml] [--key value ...]`."""

from __future__ import annotations

from entrocraft.parsing import config_from_arguments
from entrocraft.training.config import TrainConfig

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    """Train and say where the report is."""
    description = "Train a model with GRPO or RLOO while its entropy follows a schedule."
    config = config_from_arguments(TrainConfig, "train", description, arguments)
    from entrocraft.cli.console import quiet_console
    from entrocraft.training.run import train

    console = quiet_console()
    output = train(config, console)
    console.print(f"report: {output / 'report.html'}", soft_wrap=True, highlight=False)
