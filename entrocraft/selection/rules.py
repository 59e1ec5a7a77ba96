"""Which rollouts enter the update: effects and a pressure in, keep probabilities out.

The pressure is one signed number: positive wants more entropy, zero is plain RL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "RULES",
    "SUCCESS",
    "Rule",
    "RuleInput",
    "Selection",
    "Sign",
    "Switch",
    "Tilt",
    "get_rule",
    "solve_tilt",
    "tilt",
]


SUCCESS = 0.5
"""Raw reward from which on a rollout counts as a success: right for {0, 1} and for {-1, 1}."""


@dataclass(frozen=True)
class RuleInput:
    """What a rule may look at. All tensors are (B,) float64.

    `effects`: predicted entropy change of each rollout; `scale`: slow average of their mean size,
    same unit; `rewards`: raw rewards or None; `spare`: advantages that rollouts without a vote may
    get, 0 elsewhere (their `effects` are those of the spare advantages), or None.
    """

    advantages: Tensor
    effects: Tensor
    scale: float
    rewards: Tensor | None = None
    spare: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """Keep probabilities (B,) in [0, 1], and the advantages (B,) that the kept rollouts carry."""

    probabilities: Tensor
    advantages: Tensor


class Rule(Protocol):
    """An acceptance rule."""

    @property
    def name(self) -> str:
        """What it is called in settings and logs."""
        ...

    @property
    def effect(self) -> str:
        """The effect level it is made for."""
        ...

    @property
    def deadband(self) -> bool:
        """Whether it wants a pressure of -1, 0 or 1 from a band."""
        ...

    def select(self, ballot: RuleInput, pressure: float) -> Selection:
        """Return keep probabilities and advantages for this pressure."""
        ...


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


def solve_tilt(effects: Tensor, change: float) -> tuple[float, float]:
    """Find the `rate` for which `tilt` keeps ``sum_j a_j effect_j == change``.

    Returns:
        (rate, shortfall): the signed rate (infinite if even dropping every opposing rollout is not
        enough) and the part of `change` that stays out of reach, in the unit of the effects.
    """
    effects = effects.double()
    plain = float(effects.sum())
    if change == plain:
        return 0.0, 0.0
    sign = 1.0 if change > plain else -1.0
    best = float(effects[sign * effects > 0].sum())
    if sign * change >= sign * best:
        return sign * math.inf, change - best
    size = float(effects.abs().max())
    low, high = 0.0, 1.0 / size

    def reached(rate: float) -> bool:
        return sign * float((tilt(effects, sign * rate) * effects).sum()) >= sign * change

    while not reached(high):
        low, high = high, 2 * high
        if not math.isfinite(high):
            return sign * math.inf, change - best
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (low, middle) if reached(middle) else (middle, high)
    return sign * high, 0.0


@dataclass(frozen=True)
class Tilt:
    """Keep rollout j with probability ``exp(-|pressure| c_j / scale)``; see `tilt`. The default.

    No voter's probability falls below `floor`: a rare rollout with a large effect, such as the only
    success of a batch, is never locked out for good. Spare rollouts that push the wanted way are
    admitted with probability ``1 - exp(-|pressure| |effect| / scale)``, the others never.
    """

    floor: float = 0.02
    name: str = "tilt"
    effect: str = "logit"
    deadband: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor must be a probability in [0, 1), got {self.floor}")

    def select(self, ballot: RuleInput, pressure: float) -> Selection:
        """Tilt by the pressure in units of the effects' usual size."""
        if ballot.scale > 0 and pressure != 0:
            # dividing the effects, not the pressure: neither tiny nor huge effects overflow
            sizes = ballot.effects / ballot.scale
            probabilities = tilt(sizes, pressure).clamp(min=self.floor)
        else:
            sizes, probabilities = ballot.effects, torch.ones_like(ballot.effects)
        if ballot.spare is None:
            return Selection(probabilities, ballot.advantages)
        admitted = 1 - tilt(sizes, -pressure) if pressure != 0 else torch.zeros_like(sizes)
        is_spare = ballot.spare != 0
        return Selection(
            torch.where(is_spare, admitted, probabilities),
            torch.where(is_spare, ballot.spare, ballot.advantages),
        )


@dataclass(frozen=True)
class Sign:
    """Algorithm 1 of the Entrocraft paper (arXiv 2604.26326): keep rollout j iff ``m A_j >= 0``.

    ``m`` is +1 above the band, -1 below it, 0 inside: the negative of the deadband's pressure.
    Rollouts with an advantage of 0 are always kept.
    """

    name: str = "sign"
    effect: str = "sign"
    deadband: bool = True

    def select(self, ballot: RuleInput, pressure: float) -> Selection:
        """Reject every rollout whose advantage has the unwanted sign."""
        keep = -pressure * ballot.advantages >= 0
        return Selection(keep.double(), ballot.advantages)


@dataclass(frozen=True)
class Switch:
    """The rule of the paper's public code: outside its band it trains on raw rewards of one sign.

    Above the band only successes train, with advantage +1; below it only failures, with -1; also in
    groups whose rollouts all succeeded or all failed, where group-normalized advantages are 0. A
    reward of at least `success` counts as a success (so rewards in {0, 1} and in {-1, 1} mean the
    same).
    """

    success: float = SUCCESS
    name: str = "switch"
    effect: str = "sign"
    deadband: bool = True

    def select(self, ballot: RuleInput, pressure: float) -> Selection:
        """Swap the advantages for raw rewards and keep the sign that the pressure asks for."""
        if ballot.rewards is None:
            raise ValueError(
                "rule 'switch' trains on raw rewards outside its band; put RolloutBatch.rewards "
                "(B,) into the batch, or choose rule='tilt' or rule='sign'"
            )
        if pressure == 0:
            return Selection(torch.ones_like(ballot.advantages), ballot.advantages)
        raw = torch.where(ballot.rewards >= self.success, 1.0, -1.0).double()
        raw = torch.where(torch.isnan(ballot.rewards), torch.zeros_like(raw), raw)
        return Selection((-pressure * raw >= 0).double(), raw)


RULES: dict[str, Callable[[], Rule]] = {"tilt": Tilt, "sign": Sign, "switch": Switch}
"""Acceptance rules by name."""


def get_rule(rule: str | Rule) -> Rule:
    """Return the rule of this name, or the rule itself.

    Raises:
        ValueError: an unknown name, or no rule at all; the message lists the known ones.
    """
    if not isinstance(rule, str) and hasattr(rule, "judge"):
        return rule
    if rule not in RULES:
        raise ValueError(
            f"unknown rule {rule!r}; choose one of {', '.join(RULES)} or None for plain RL"
        )
    return RULES[rule]()
