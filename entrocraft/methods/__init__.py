"""Baselines: published methods against entropy collapse, by name and hosted like the controller.

>>> get_method("clip_cov", ratio=1e-3).trainer_options
{'epsilon': 1.0, 'epsilon_high': 1.0, 'delta': 10.0}
>>> get_method("entropic", "linear(0.5, 0.25, 300)").target(150)
0.375

A class's docstring has the formula, the source and what the original code does differently.
"""

import difflib
import inspect
from importlib import import_module
from typing import Any

from entrocraft import schedules
from entrocraft.method import Method

__all__ = ["METHODS", "follows_target", "get_method", "method_class", "options_of"]

_CLASSES = {
    # options that the trainer has
    "entropy_bonus": "presets.EntropyBonus",
    "adaptive_bonus": "presets.AdaptiveBonus",
    "mai_clip": "presets.MAIClip",
    "clip_higher": "presets.ClipHigher",
    "clip_low": "presets.ClipLow",
    "dr_grpo": "presets.DrGRPO",
    "gspo": "presets.GSPO",
    "cispo": "presets.CISPO",
    "sapo": "presets.SAPO",
    # advantages in place of the estimator's
    "raft++": "reinforce.RAFT",
    "reinforce_rej": "reinforce.ReinforceRej",
    "psr": "reinforce.PSR",
    "nsr": "reinforce.NSR",
    "w_reinforce": "reinforce.WeightedReinforce",
    "qae": "reinforce.QAE",
    "maxrl": "reinforce.MaxRL",
    "entropic_fork": "entropic.EntroPICFork",
    # advantages of single tokens
    "entropic": "entropic.EntroPIC",
    "clip_cov": "covariance.ClipCov",
    "kl_cov": "covariance.KLCov",
    "clip_b": "entropy_clip.ClipB",
    "clip_v": "entropy_clip.ClipV",
    "erc": "erc.ERC",
    "steer": "steer.STEER",
    "ce_gppo": "ce_gppo.CEGPPO",
    "dppo": "dppo.DPPO",
    "repo_r": "repo.REPO",
    # what the entropy bonus averages; more rollouts
    "aent": "aent.AEnt",
    "aepo": "aepo.AEPO",
}

METHODS = tuple(_CLASSES)
"""Names of all baselines."""


def method_class(name: str) -> type[Method]:
    """Return the class of this name.

    Raises:
        ValueError: there is none; the message lists the known names.
    """
    if name not in _CLASSES:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown method {name!r}{hint}; known are {', '.join(METHODS)}")
    module, found = _CLASSES[name].split(".")
    return getattr(import_module(f"{__name__}.{module}"), found)


def follows_target(name: str) -> bool:
    """Whether the method of this name steers entropy toward a target."""
    return method_class(name).follows


def options_of(name: str) -> list[str]:
    """Names of the options that the method of this name has."""
    return [key for key in inspect.signature(method_class(name)).parameters if key != "schedule"]


def get_method(
    name: str, schedule: schedules.Schedule | str | float | None = None, **options: Any
) -> Method:
    """Make the method of this name, with a target entropy (see `Method`) and options of its own.

    Raises:
        ValueError: an unknown name or option, or a value out of range.
    """
    known = options_of(name)
    for key in options:
        if key not in known:
            has = ", ".join(known) or "none"
            raise ValueError(f"the method {name!r} has no option {key!r}; it has {has}")
    return method_class(name)(schedule, **options)
