"""Successes that count less than failures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from entrocraft.selection.rules import SUCCESS
from entrocraft.methods.base import Reading, RewardPeer, checked, peer
from entrocraft.rollouts import RolloutSums

__all__ = ["WeightedReinforce"]


@peer("w_reinforce")
class WeightedReinforce(RewardPeer):
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

    def advantages(self, sums: RolloutSums, reading: Reading) -> Tensor:
        right, wrong = self.successes(sums)
        return self.weight * right.double() - wrong.double()
