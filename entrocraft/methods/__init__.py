"""Every peer by name, behind the same door as the controller.

>>> get_method("clip_cov", ratio=1e-3).trainer_options
{'epsilon': 1.0, 'epsilon_high': 1.0, 'delta': 10.0}
>>> get_method("entropic", "linear(0.5, 0.25, 300)").target(150)
0.375

One file holds one method; its docstring has the rule, the source, the defaults and what the
original code does differently.
"""

from __future__ import annotations

import difflib
import inspect
from importlib import import_module
from typing import Any

from entrocraft import schedules
from entrocraft.methods.base import BASELINES, Baseline, TokenBaseline

__all__ = [
    "METHODS",
    "Baseline",
    "TokenBaseline",
    "baseline_class",
    "follows_target",
    "get_method",
    "options_of",
]

_MODULES = (
    # options that the trainer has
    "entropy_bonus",
    "adaptive_bonus",
    "clip_higher",
    "clip_low",
    "dr_grpo",
    "gspo",
    "cispo",
    "sapo",
    # advantages in place of the estimator's
    "raft",
    "reinforce_rej",
    "psr",
    "nsr",
    "w_reinforce",
    "qae",
    "entropic_fork",
    # weights of tokens
    "entropic",
    "clip_cov",
    "kl_cov",
    "clip_b",
    "clip_v",
    "erc",
    "steer",
    "ce_gppo",
    # what the entropy bonus averages; more rollouts
    "aent",
    "aepo",
)
for _module in _MODULES:
    import_module(f"{__name__}.{_module}")

METHODS = tuple(BASELINES)
"""Names of all peers."""


def baseline_class(name: str) -> type[Baseline]:
    """Return the class of this name.

    Raises:
        ValueError: there is none; the message lists the known names.
    """
    if name not in BASELINES:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown method {name!r}{hint}; known are {', '.join(METHODS)}")
    return BASELINES[name]


def follows_target(name: str) -> bool:
    """Whether the method of this name steers entropy towards a target."""
    return baseline_class(name).follows


def options_of(name: str) -> list[str]:
    """Names of the options that the method of this name has."""
    return [key for key in inspect.signature(baseline_class(name)).parameters if key != "schedule"]


def get_method(
    name: str, schedule: schedules.Schedule | str | float | None = None, **options: Any
) -> Baseline:
    """Make the method of this name.

    Args:
        name: one of `METHODS`.
        schedule: target entropy, nats per token; see `Baseline`.
        options: the method's own arguments.

    Raises:
        ValueError: an unknown name or option, or a value out of range.
    """
    found, known = baseline_class(name), options_of(name)
    for key in options:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"the method {name!r} has no option {key!r}; {has}")
    return found(schedule, **options)
