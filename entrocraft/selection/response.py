"""The response of a batch: pressure -> expected entropy change of the rollouts that are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from entrocraft.effects import BatchMeans, rollout_effects
from entrocraft.rollouts.batch import RolloutStats
from entrocraft.selection.rules import SUCCESS, Rule, RuleInput, Selection, SelectionSettings

__all__ = ["SHAPE", "Response", "ResponseCurve", "rule_input"]

_HALF_GRID = 16  # pressures on either side of 0, closer together near it
_MOST_ROLLOUTS = 2**15

SHAPE = (2 * _HALF_GRID + 1, 2)
"""Of `ResponseCurve.sums`: pressures of the grid, signs of the advantage."""


def rule_input(
    stats: RolloutStats,
    level: str,
    scale: float,
    settings: SelectionSettings,
    means: BatchMeans | None = None,
) -> RuleInput:
    """Return what a rule looks at, for a whole batch or, with the whole's `means`, a part of it.

    Raises:
        ValueError: the batch lacks what the effect level or `constant_reward_groups` needs.
    """
    joining, advantages = None, stats.advantages
    if settings.constant_reward_groups:
        joining = _joining_advantages(stats)
        advantages = stats.advantages + joining
    effects = rollout_effects(replace(stats, advantages=advantages), level, means)
    return RuleInput(stats.advantages, effects, scale, stats.rewards, joining)


def _joining_advantages(stats: RolloutStats) -> Tensor:
    """Raw rewards, +1 or -1, of rollouts in groups with one reward; 0 elsewhere: (B,)."""
    if stats.rewards is None or stats.group is None:
        raise ValueError(
            "constant_reward_groups trains on raw rewards of whole groups; put RolloutBatch.rewards"
            " (B,) and RolloutBatch.group (B,) into the batch, or leave constant_reward_groups off"
        )
    constant = stats.constant_reward & torch.isfinite(stats.rewards)
    silent = (stats.advantages == 0) & (stats.tokens > 0)
    raw = torch.where(stats.rewards >= SUCCESS, 1.0, -1.0).double()
    return torch.where(constant & silent, raw, torch.zeros_like(raw))


@dataclass(frozen=True)
class Response:
    """What a rule can choose from in one batch, and what each pressure is expected to do.

    Attributes:
        rule, given: the rejection rule, and what it looks at.
        unit: (B,), effect of an advantage of 1 over all optimizer steps of the batch.
        tokens: (B,), response tokens.
        limit: largest pressure.
    """

    rule: Rule
    given: RuleInput
    unit: Tensor
    tokens: Tensor
    limit: float

    @property
    def joining(self) -> Tensor | None:
        """(B,) bool: rollouts that plain RL would not train on; None if none may join."""
        return None if self.given.joining is None else self.given.joining != 0

    @cached_property
    def size(self) -> float:
        """Sum of the absolute effects of the active rollouts over all steps of the batch."""
        selection, active = self.select(0.0)
        return float((self.unit * selection.advantages)[active].abs().sum())

    def select(self, pressure: float) -> tuple[Selection, Tensor]:
        """Selection under a pressure, and the rollouts (B,) bool that are active in it."""
        selection = self.rule.select(self.given, pressure)
        return selection, (selection.advantages != 0) & (self.tokens > 0)

    def kept(self, selection: Selection, weights: Tensor) -> Tensor:
        """(2, B) effects of the weighted advantages: of the positive ones, of the negative ones."""
        trained = selection.advantages * weights
        return torch.stack([self.unit * trained.clamp(min=0), self.unit * trained.clamp(max=0)])

    def at(self, pressure: float) -> tuple[float, float]:
        """Expected sums of the kept effects, of positive and of negative advantages."""
        selection, _ = self.select(pressure)
        positive, negative = self.kept(selection, selection.probabilities).sum(1).tolist()
        return positive, negative

    @cached_property
    def curve(self) -> ResponseCurve:
        """The response at every pressure of the grid.

        Of a very large batch every n-th rollout in the order of the effects stands for n.
        """
        part, every = self, len(self.tokens) // _MOST_ROLLOUTS
        if every > 1:
            rows = self.order[every // 2 :: every]
            columns: dict[str, Any] = {
                name: value[rows] if torch.is_tensor(value) else value
                for name, value in vars(self.given).items()
            }
            given = RuleInput(**columns)
            part = replace(self, given=given, unit=self.unit[rows], tokens=self.tokens[rows])
        sums = [part.at(pressure) for pressure in _pressures(self.limit).tolist()]
        share = len(self.tokens) / len(part.tokens)
        return ResponseCurve(share * torch.tensor(sums, dtype=torch.float64), self.size, self.limit)

    @cached_property
    def order(self) -> Tensor:
        """(B,), rollouts by rising effect."""
        return torch.argsort(self.given.effects, stable=True)


def _pressures(limit: float) -> Tensor:
    half = torch.arange(-_HALF_GRID, _HALF_GRID + 1, dtype=torch.float64) / _HALF_GRID
    return limit * half.abs() * half


@dataclass(frozen=True)
class ResponseCurve:
    """A batch's response on a grid of pressures: all that planning needs to know of its rollouts.

    Attributes:
        sums: `SHAPE`, expected sums of the kept effects, of positive and of negative advantages.
        size: sum of the absolute effects of the active rollouts.
        limit: largest pressure.
    """

    sums: Tensor
    size: float
    limit: float

    def __post_init__(self) -> None:
        if tuple(self.sums.shape) != SHAPE:
            raise ValueError(f"a response has the shape {SHAPE}, got {tuple(self.sums.shape)}")

    @property
    def ends(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Sums at the largest pressure against entropy, and at the largest for it."""
        (low_positive, low_negative), (positive, negative) = self.sums[[0, -1]].tolist()
        return (low_positive, low_negative), (positive, negative)

    def solve(self, gains: tuple[float, float], wanted: float) -> tuple[float, float]:
        """Smallest pressure whose kept effects, times the gains, sum to `wanted` nats per token.

        Interpolates linearly between grid pressures. `gains` are nats per unit of effect, of
        positive and of negative advantages.

        Returns:
            (pressure, wanted), or the limit and what it gives if `wanted` is out of reach.
        """
        pressures = _pressures(self.limit)
        nats = self.sums @ torch.tensor(gains, dtype=torch.float64)
        plain = float(nats[_HALF_GRID])
        if wanted == plain:
            return 0.0, plain
        side = 1.0 if wanted > plain else -1.0
        order = slice(_HALF_GRID, None) if side > 0 else torch.arange(_HALF_GRID, -1, -1)
        points, values = pressures[order], side * nats[order]
        beyond = (values >= side * wanted).nonzero()
        if not len(beyond):
            return side * self.limit, float(side * values[-1])
        place = int(beyond[0])
        low, high = float(values[place - 1]), float(values[place])
        share = (side * wanted - low) / (high - low)
        pressure = (1 - share) * float(points[place - 1]) + share * float(points[place])
        return pressure, wanted
