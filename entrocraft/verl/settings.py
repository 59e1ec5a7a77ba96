"""The section `entrocraft` of verl's configuration."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from entrocraft.lab.parsing import config_from_mapping
from entrocraft.method import EntropyMethod
from entrocraft.methods import Baseline
from entrocraft.settings import ControlConfig

__all__ = ["SECTION", "method_of"]

SECTION = "entrocraft"
_EXAMPLE = "'+entrocraft.schedule=\"linear(0.6, 0.4, 404)\"'"


def method_of(config: DictConfig) -> EntropyMethod:
    """Make the entropy method of a run.

    The keys are those of `control` in entrocraft's YAML files (`ControlConfig`), without a default
    for `schedule`, and `seed`.

    Raises:
        ValueError: no section, an unknown key, a wrong value, or a method that verl cannot host.
    """
    section = config.get(SECTION)
    if section is None:
        raise ValueError(
            "no entropy control is configured; add a schedule to verl's arguments, e.g. "
            f"{_EXAMPLE}, or choose a trainer_mode without entrocraft_"
        )
    if not isinstance(section, DictConfig):
        raise ValueError(f"entrocraft is {section!r}; it has keys, e.g. {_EXAMPLE}")
    keys: Any = OmegaConf.to_container(section, resolve=True)
    seed = keys.pop("seed", 0)
    if not isinstance(seed, int):
        raise ValueError(f"entrocraft.seed is {seed!r}; use a whole number")
    method = config_from_mapping(ControlConfig, {"schedule": None} | keys).build(seed)
    _check(method)
    return method


def _check(method: EntropyMethod) -> None:
    """Refuse what works inside TRL's loss or on its options.

    Raises:
        ValueError: says what verl has instead.
    """
    if not isinstance(method, Baseline):
        return
    own = type(method)
    if (
        method.trainer_options
        or getattr(method, "scope", "batch") == "update"
        or hasattr(method, "bonus_entropy")
        or own.extra is not Baseline.extra
    ):
        raise ValueError(
            f"the method {method.name!r} works inside the trainer's loss or on its options; on "
            "verl set verl's own (actor.policy_loss.loss_mode, actor.clip_ratio_high, "
            "actor.entropy_coeff), or choose a method that works on advantages"
        )
