"""`entrocraft dynamics MODEL [CONFIG.yaml] [--key value ...]`."""

from __future__ import annotations

from entrocraft.lab.parsing import config_from_arguments


def run(arguments: list[str]) -> None:
    """Study a model on a task and say where figure and numbers are."""
    from entrocraft.lab.dynamics.config import DynamicsConfig

    if arguments and not arguments[0].startswith("-"):
        first, *rest = arguments
        if not first.endswith((".yaml", ".yml")):
            arguments = [*rest, "--model", first]  # last, so that it wins over the file
    config = config_from_arguments(
        DynamicsConfig,
        "dynamics MODEL",
        "Measure on a model and a task: predicted against post-update change of entropy, the "
        "paper's theorem, and the change that each rule can reach.",
        arguments,
    )
    from entrocraft.lab.cli.console import quiet_console
    from entrocraft.lab.dynamics.study import dynamics
    from entrocraft.lab.dynamics.summary import describe

    console = quiet_console()
    results = dynamics(config, console)
    console.print(describe(results["summary"]), soft_wrap=True, highlight=False)
    for name in ("dynamics.png", "dynamics.json"):
        console.print(f"{config.output / name}", soft_wrap=True, highlight=False)
