"""What one rollout batch lets a rule choose from, and what each choice is predicted to do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from entrocraft.rollouts import RolloutStats
from entrocraft.selection.rules import SUCCESS, Rule, RuleInput, Selection
from entrocraft.selection.sampling import Sampling

__all__ = ["Response", "constant_reward_groups"]


@dataclass(frozen=True)
class Response:
    """What a rule can choose from in one batch, and what each choice is predicted to do.

    `unit` (B,): effect of an advantage of 1 over all steps of the batch; `spare` (B,) bool.
    """

    rule: Rule
    ballot: RuleInput
    drawing: Sampling
    unit: Tensor
    tokens: Tensor
    spare: Tensor

    @property
    def effects(self) -> Tensor:
        """(B,) effects with the advantages on offer."""
        return self.ballot.effects

    @property
    def size(self) -> float:
        """Sum of the absolute effects over all steps of the batch."""
        verdict, votes = self.select(0.0)
        return float((self.unit * verdict.advantages)[votes].abs().sum())

    def select(self, pressure: float) -> tuple[Selection, Tensor]:
        """Selection, and the rollouts (B,) bool that carry a vote in it."""
        verdict = self.rule.select(self.ballot, pressure)
        return verdict, (verdict.advantages != 0) & (self.tokens > 0)

    def kept(self, verdict: Selection, weights: Tensor) -> Tensor:
        """(2, B) effects of the weighted advantages: of the positive ones, of the negative ones."""
        trained = verdict.advantages * weights
        return torch.stack([self.unit * trained.clamp(min=0), self.unit * trained.clamp(max=0)])

    def reach(self, pressure: float) -> tuple[float, float]:
        """Expected stats of the kept effects under a pressure, by sign of the advantage."""
        verdict, votes = self.select(pressure)
        weights = self.drawing.expected(verdict.probabilities, votes, self.tokens, self.spare)
        positive, negative = self.kept(verdict, weights).sum(1).tolist()
        return positive, negative


def constant_reward_groups(stats: RolloutStats) -> Tensor:
    """Raw rewards, +1 or -1, of rollouts whose whole group was rewarded alike; 0 elsewhere: (B,).

    Raises:
        ValueError: the batch has no rewards or no groups.
    """
    if stats.rewards is None or stats.group is None:
        raise ValueError(
            "constant_reward_groups trains on raw rewards of whole groups; put RolloutBatch.rewards (B,) "
            "and RolloutBatch.group (B,) into the batch, or leave constant_reward_groups off"
        )
    uniform = stats.constant_reward & torch.isfinite(stats.rewards)
    silent = (stats.advantages == 0) & (stats.tokens > 0)
    raw = torch.where(stats.rewards >= SUCCESS, 1.0, -1.0).double()
    return torch.where(uniform & silent, raw, torch.zeros_like(raw))
