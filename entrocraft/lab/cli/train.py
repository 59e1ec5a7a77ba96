"""`entrocraft train [CONFIG.yaml] [--key value ...]`."""

from __future__ import annotations

from textwrap import wrap

from entrocraft.lab.parsing import config_from_arguments
from entrocraft.lab.training.config import TrainConfig

FIRST = (
    "config",
    "model",
    "task.name",
    "task.options",
    "task.train_size",
    "task.max_prompt_tokens",
    "output",
    "steps",
    "prompts",
    "generations",
    "micro_batch",
    "learning_rate",
    "max_completion_length",
    "control.schedule",
    "control.rule",
    "lora",
    "dtype",
    "trainer",
)
"""Keys that most runs set; the help shows them first."""


def _data_options() -> str:
    """Text on the options of the task `hf`, for the help."""
    from docstring_parser import parse

    from entrocraft.lab.tasks import PRESETS, DataTask

    lines = ["options of the task hf, your own data (task.options):"]
    for option in parse(DataTask.__doc__ or "").params:
        lines += wrap(
            f"{option.arg_name}: {' '.join((option.description or '').split())}",
            initial_indent="  ",
            subsequent_indent="      ",
        )
    for name, options in PRESETS.items():
        text = ", ".join(f"{key}: {value}" for key, value in options.items())
        lines += wrap(f"task {name}: {text}", initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


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
        "below: --dry-run, train nothing, say what would fail or be in vain; --verbose, print each "
        "record with all that is logged, not entropy, target, reward and kept share alone."
    )
    verbose, dry = (flag in arguments for flag in ("--verbose", "--dry-run"))
    arguments = [argument for argument in arguments if argument not in ("--verbose", "--dry-run")]
    config = config_from_arguments(
        TrainConfig, "train", description, arguments, FIRST, _data_options
    )
    from entrocraft.lab.cli.console import quiet_console
    from entrocraft.lab.training.run import train

    console = quiet_console()
    if dry:
        from entrocraft.lab.training.dry_run import DryRun

        if not DryRun(config, console).run():
            raise SystemExit(1)
        return
    try:
        output = train(config, console, verbose)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_resume(config)) from None
    console.print(f"report: {output / 'report.html'}", soft_wrap=True, highlight=False)
