"""Successes that count less than failures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from entrocraft.methods.base import Peer, Reading, checked, peer, successes
from entrocraft.rollouts import RolloutSums

__all__ = ["WeightedReinforce"]


@peer("w_reinforce")
class WeightedReinforce(Peer):
    """W-REINFORCE: ``A = weight`` for a success and -1 for a failure.

    Source: Zhu et al., The Surprising Effectiveness of Negative Reinforcement (arXiv 2506.01347),
    weight 0.1; repository RLVR-Decomposed.

    Args:
        weight: advantage of a success.
    """

    coefficient = "weight"

    def __init__(self, schedule: Any = None, *, weight: float = 0.1) -> None:
        super().__init__(schedule)
        self.weight = checked(self, "weight", weight, 0)

    def advantages(self, sums: RolloutSums, reading: Reading) -> Tensor:
        right, wrong = successes(self, sums)
        return self.weight * right.double() - wrong.double()
