"""The section `entrocraft` of verl's configuration."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from entrocraft.method import Method
from entrocraft.settings import settings_from_mapping

__all__ = ["method_of"]

_EXAMPLE = "'+entrocraft.schedule=\"linear(0.6, 0.4, 404)\"'"


def method_of(config: DictConfig) -> Method:
    """Make the entropy method of a run.

    The keys are those of `ControlSettings`, without a default for `schedule`, and `seed`.

    Raises:
        ValueError: no section, an unknown key, a wrong value, or a method that verl cannot host.
    """
    section = config.get("entrocraft")
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
    method = settings_from_mapping(keys).build(seed)
    inside_loss = method.token_scope == "update" or method.uses_bonus or method.samples_more
    if method.trainer_options or inside_loss:
        raise ValueError(
            f"the method {method.name!r} works inside the trainer's loss or on its options; on "
            "verl set verl's own (actor.policy_loss.loss_mode, actor.clip_ratio_high, "
            "actor.entropy_coeff), or choose a method that works on advantages"
        )
    if method.drop_rejected:
        raise ValueError(
            "drop_rejected is for TRL: verl's mini-batches have one size; leave it out"
        )
    if method.sets_learning_rate:
        raise ValueError(
            "feedback.learning_rate and guard.action=pause change the learning rate between "
            "batches, which verl does not support; leave them out, or set actor.optim.lr lower"
        )
    return method
