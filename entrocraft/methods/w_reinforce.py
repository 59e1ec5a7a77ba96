"""Successes that count less than failures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from entrocraft.methods.base import Reading, RewardBaseline, baseline, checked
from entrocraft.rollouts import RolloutStats
from entrocraft.selection.rules import SUCCESS

__all__ = ["WeightedReinforce"]


@baseline("w_reinforce")
class WeightedReinforce(RewardBaseline):
    """W-REINFORCE: ``A = weight`` for a success and -1 for a failure.

    Source: Zhu et al., The Surprising Effectiveness of Negative Reinforcement (arXiv 2506.01347),
    weight 0.1; repository RLVR-Decomposed.

    Args:
        weight: advantage of a success.
        success: smallest reward of a success.
    """

    coefficient = "weight"

    def __init__(
        self, schedule: Any = None, *, weight: float = 0.1, success: float = SUCCESS
    ) -> None:
        super().__init__(schedule, success=success)
        self.weight = checked(self, "weight", weight, 0)

    def advantages(self, stats: RolloutStats, reading: Reading) -> Tensor:
        right, wrong = self.successes(stats)
        return self.weight * right.double() - wrong.double()
