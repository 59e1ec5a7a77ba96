"""`entrocraft train [CONFIG.yaml] [--key value ...]`."""

from __future__ import annotations

from entrocraft.lab.parsing import config_from_arguments
from entrocraft.lab.training.config import TrainConfig


def _how_to_resume(config: TrainConfig) -> str:
    """Text for a stopped run: the step from which it can be resumed, and by which command."""
    from entrocraft.lab.training.directory import RunDirectory

    last = RunDirectory(config.output).last_checkpoint(below=config.steps)
    if last is None:
        return "no checkpoint was written yet (save_every), the same command starts over"
    command = "the same command" if config.resume else "the same command without resume=false"
    return f"{command} goes on from step {last.rpartition('-')[2]}"


def run(arguments: list[str]) -> None:
    """Train and say where the report is."""
    description = (
        "Train a model with GRPO or RLOO while its entropy follows a schedule. Beside the keys "
        "below: --verbose, print every record with all that is logged, not entropy, target, reward "
        "and kept share alone."
    )
    verbose = "--verbose" in arguments
    arguments = [argument for argument in arguments if argument != "--verbose"]
    config = config_from_arguments(TrainConfig, "train", description, arguments)
    from entrocraft.lab.cli.console import quiet_console
    from entrocraft.lab.training.run import train

    console = quiet_console()
    try:
        output = train(config, console, verbose)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_resume(config)) from None
    console.print(f"report: {output / 'report.html'}", soft_wrap=True, highlight=False)
