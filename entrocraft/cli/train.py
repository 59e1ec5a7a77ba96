"""`entrocraft train CONFIG.yaml [--key value ...]`."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser

from entrocraft.training.config import TrainConfig

__all__ = ["build", "from_mapping", "quiet_libraries", "run"]


def run(arguments: list[str]) -> None:
    """Train and say where the report is."""
    config = build(_parser(), TrainConfig, arguments)
    quiet_libraries()
    from rich.console import Console

    from entrocraft.training.run import train

    console = Console()
    output = train(config, console)
    console.print(f"report: {output / 'report.html'}", soft_wrap=True, highlight=False)


def quiet_libraries() -> None:
    """Leave the terminal to our own progress: no bars and deprecation notes of the libraries."""
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")


def from_mapping(keys: dict[str, Any]) -> TrainConfig:
    """Make a config from nested keys, checked as if they came from a YAML file.

    Raises:
        ValueError: an unknown key or a value of the wrong type.
    """
    parser = _parser(exit_on_error=False)
    return _instantiate(parser, TrainConfig, parser.parse_object(keys))


def build(parser: ArgumentParser, config_class: type, arguments: list[str]) -> Any:
    """Parse arguments, the first of which may be a config file's path, and make the config."""
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--config", *arguments]
    return _instantiate(parser, config_class, parser.parse_args(arguments))


def _parser(**options: Any) -> ArgumentParser:
    parser = ArgumentParser(
        prog="entrocraft train",
        usage="entrocraft train [CONFIG.yaml] [--key value ...]",
        description="Train a model with GRPO or RLOO while its entropy follows a schedule.",
        **options,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_class_arguments(TrainConfig, as_group=False)
    return parser


def _instantiate(parser: ArgumentParser, config_class: type, namespace: Any) -> Any:
    values = vars(parser.instantiate_classes(namespace))
    values.pop("config", None)
    return config_class(**values)
