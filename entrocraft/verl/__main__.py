"""`python -m entrocraft.verl`: verl's own command with entropy control.

Takes verl's arguments, and entrocraft.* without further ado: `++` is put before them, so that the
last one wins, also over a section in your own YAML, and a schedule is quoted for Hydra. The
trainer mode is verl's (sync, colocate_async, separate_async).
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

__all__ = ["arguments_for_verl", "main"]

_MODULES = "VERL_USE_EXTERNAL_MODULES"
_PACKAGE = "entrocraft.verl"


def arguments_for_verl(arguments: list[str]) -> list[str]:
    """Return the arguments with entrocraft's own in Hydra's grammar.

    >>> arguments_for_verl(["trainer.n_gpus_per_node=8", "entrocraft.schedule=linear(1, 0, 9)"])
    ['trainer.n_gpus_per_node=8', '++entrocraft.schedule="linear(1, 0, 9)"']
    """
    found = []
    for argument in arguments:
        match = re.fullmatch(r"\+{0,2}(entrocraft\.[\w.]+)=(.*)", argument, re.DOTALL)
        if match is not None:
            key, value = match.groups()
            if value[:1] not in ("", *"\"'{[") and re.search(r"[(),*]", value):
                escaped = value.replace('"', '\\"')
                value = f'"{escaped}"'
            argument = f"++{key}={value}"
        found.append(argument)
    return found


def main() -> None:
    """Run verl with a controlled trainer.

    Raises:
        SystemExit: nothing that makes sense is configured.
    """
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
    sys.argv[1:] = arguments_for_verl(sys.argv[1:])
    import hydra
    from verl.trainer import main_ppo

    modules = [name for name in os.environ.get(_MODULES, "").split(",") if name]
    if _PACKAGE not in modules:
        modules.append(_PACKAGE)

    @hydra.main(
        config_path="pkg://verl.trainer.config", config_name="ppo_trainer", version_base=None
    )
    def run(config: Any) -> None:
        _prepare(config, ",".join(modules))
        main_ppo.main.__wrapped__(config)

    run()


def _prepare(config: Any, modules: str) -> None:
    """Choose the controlled trainer and let every process import this package.

    Raises:
        SystemExit: a mode or a setting that cannot be met; no cluster has been started yet.
    """
    from omegaconf import open_dict

    from entrocraft.verl.plugin import MODES, trainer_name
    from entrocraft.verl.settings import method_of

    mode = config.trainer.v1.trainer_mode.removeprefix(trainer_name(""))
    if mode not in MODES or not config.trainer.use_v1:
        raise SystemExit(
            f"trainer.v1.trainer_mode is {mode!r} and trainer.use_v1 is {config.trainer.use_v1}; "
            f"entropy control knows verl's V1 trainers: {', '.join(MODES)}"
        )
    try:
        method_of(config)
    except ValueError as error:
        raise SystemExit(f"entrocraft: {error}") from error
    os.environ[_MODULES] = modules  # a local Ray inherits it
    with open_dict(config):
        config.trainer.v1.trainer_mode = trainer_name(mode)
        ray_init = config.ray_kwargs.ray_init
        for key in ("runtime_env", "env_vars"):
            if ray_init.get(key) is None:
                ray_init[key] = {}
            ray_init = ray_init[key]
        ray_init.setdefault(_MODULES, modules)


if __name__ == "__main__":
    main()
