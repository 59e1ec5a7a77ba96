"""Rejection rules: advantages, predicted effects and a pressure in, keep probabilities out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from entrocraft.typed import check_types

__all__ = ["RULES", "SUCCESS", "Rule", "RuleInput", "Selection", "SelectionSettings", "get_rule"]

RULES = ("tilt", "sign", "switch")
"""Rejection rules by name."""

SUCCESS = 0.5
"""Raw reward from which on a rollout counts as a success: right for {0, 1} and for {-1, 1}."""


@dataclass(frozen=True)
class SelectionSettings:
    """How rollouts are selected under a given pressure.

    Args:
        floor: for the rule tilt: least keep probability of an active rollout.
        constant_reward_groups: for the rule tilt: let rollouts of groups in which all succeeded or
            all failed, whose advantage is 0, join with raw rewards (+1, -1) when they push the
            wanted way. Needs rewards and groups.

    Raises:
        ValueError: a setting out of range.
    """

    floor: float = 0.0
    constant_reward_groups: bool = False

    def __post_init__(self) -> None:
        check_types(self, "selection.")
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor must be a probability in [0, 1), got {self.floor}")


@dataclass(frozen=True)
class RuleInput:
    """What a rule looks at: (B,) float64 tensors, and the slow average of the effects' mean size.

    `effects` are those of the advantages that each rollout would carry; `joining` are the
    advantages that rollouts of constant-reward groups may join the update with, 0 elsewhere, None
    if they may not.
    """

    advantages: Tensor
    effects: Tensor
    scale: float
    rewards: Tensor | None = None
    joining: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """Keep probabilities (B,) in [0, 1], and the advantages (B,) that kept rollouts carry."""

    probabilities: Tensor
    advantages: Tensor


class Rule(ABC):
    """A rejection rule; what it does to a rollout depends on that rollout and the pressure alone.

    Attributes:
        name: in settings and logs.
        effect: the effect level that it is made for.
        deadband: whether it wants a pressure of -1, 0 or 1 from a band.
    """

    name: ClassVar[str]
    effect: ClassVar[str] = "sign"
    deadband: ClassVar[bool] = True

    @abstractmethod
    def select(self, given: RuleInput, pressure: float) -> Selection:
        """Return keep probabilities and advantages for this pressure."""


def tilt(effects: Tensor, rate: float) -> Tensor:
    """Least-distortion keep probabilities ``a_j = exp(-|rate| c_j)``, in [0, 1].

    ``c_j`` is the part of effect j that pushes against the sign of `rate` (positive: more entropy),
    0 for the others: those are always kept. Among all ``0 <= a <= 1`` with the same
    ``sum_j a_j effect_j`` this one has the smallest generalized KL divergence
    ``sum_j (a log a - a + 1)`` from keeping everything.

    >>> tilt(torch.tensor([1.0, -1.0, 0.0]), rate=math.log(2)).tolist()
    [1.0, 0.5, 1.0]
    """
    against = (-math.copysign(1.0, rate) * effects).clamp(min=0)
    if math.isinf(rate):
        return (against == 0).to(effects.dtype)
    return torch.exp(-abs(rate) * against)


@dataclass(frozen=True)
class Tilt(Rule):
    """Keep rollout j with probability ``exp(-|pressure| c_j / scale)``; see `tilt`. The default.

    No active rollout's probability falls below `floor`: above 0, a rare rollout with a large effect
    is never locked out for good, and the pressure can do less. Joining rollouts that push the
    wanted way are admitted with probability ``1 - exp(-|pressure| |effect| / scale)``, the others
    never.
    """

    floor: float = 0.0
    name = "tilt"
    effect = "sampled"
    deadband = False

    def select(self, given: RuleInput, pressure: float) -> Selection:
        """Tilt, the pressure in units of the effects' usual size."""
        if given.scale > 0 and pressure != 0:
            # dividing the effects, not the pressure: neither tiny nor huge effects overflow
            sizes = given.effects / given.scale
            probabilities = tilt(sizes, pressure).clamp(min=self.floor)
        else:
            sizes, probabilities = given.effects, torch.ones_like(given.effects)
        if given.joining is None:
            return Selection(probabilities, given.advantages)
        admitted = 1 - tilt(sizes, -pressure) if pressure != 0 else torch.zeros_like(sizes)
        joins = given.joining != 0
        return Selection(
            torch.where(joins, admitted, probabilities),
            torch.where(joins, given.joining, given.advantages),
        )


class Sign(Rule):
    """Algorithm 1 of the Entrocraft paper (arXiv 2604.26326): keep rollout j iff ``m A_j >= 0``.

    ``m`` is +1 above the band, -1 below it, 0 inside: the negative of the deadband's pressure.
    Rollouts with an advantage of 0 are always kept.
    """

    name = "sign"

    def select(self, given: RuleInput, pressure: float) -> Selection:
        """Reject every rollout whose advantage has the unwanted sign."""
        keep = -pressure * given.advantages >= 0
        return Selection(keep.double(), given.advantages)


class Switch(Rule):
    """The rule of the paper's public code: outside its band it trains on raw rewards of one sign.

    Above the band only successes train, with advantage +1; below it only failures, with -1; also in
    groups whose rollouts all succeeded or all failed, where group-normalized advantages are 0. A
    batch in which the estimator's advantages are all 0 is left as it is.
    """

    name = "switch"

    def select(self, given: RuleInput, pressure: float) -> Selection:
        """Swap the advantages for raw rewards and keep the sign that the pressure asks for."""
        if given.rewards is None:
            raise ValueError(
                "rule 'switch' trains on raw rewards; put RolloutBatch.rewards (B,) into the "
                "batch, or choose rule='tilt' or rule='sign'"
            )
        if pressure == 0:
            return Selection(torch.ones_like(given.advantages), given.advantages)
        raw = torch.where(given.rewards >= SUCCESS, 1.0, -1.0).double()
        raw = torch.where(torch.isnan(given.rewards), torch.zeros_like(raw), raw)
        return Selection((-pressure * raw >= 0).double(), raw)


def get_rule(name: str, settings: SelectionSettings | None = None) -> Rule:
    """Make the rule of this name.

    Raises:
        ValueError: an unknown name, or a setting that the rule does not have.
    """
    settings = settings or SelectionSettings()
    if name not in RULES:
        raise ValueError(
            f"unknown rule {name!r}; choose one of {', '.join(RULES)} or None for plain RL"
        )
    if settings.constant_reward_groups and name != "tilt":
        raise ValueError(
            f"constant_reward_groups needs rule='tilt', got {name!r}; 'switch' does so by itself"
        )
    if settings.floor and name != "tilt":
        raise ValueError(f"floor needs rule='tilt', got {name!r}, which has no probabilities")
    rules: dict[str, Rule] = {"tilt": Tilt(settings.floor), "sign": Sign(), "switch": Switch()}
    return rules[name]
