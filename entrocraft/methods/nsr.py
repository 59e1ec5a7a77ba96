"""Failures alone."""

from __future__ import annotations

from torch import Tensor

from entrocraft.methods.base import Reading, RewardBaseline, baseline, without_the_rest
from entrocraft.rollouts import RolloutStats

__all__ = ["NSR"]


@baseline("nsr")
class NSR(RewardBaseline):
    """Negative sample reinforcement: ``A = R - 1`` with rewards 0 and 1; successes are dropped.

    Source: Zhu et al., The Surprising Effectiveness of Negative Reinforcement (arXiv 2506.01347);
    repository RLVR-Decomposed. It drops the rows, here they get advantage 0 and the others are
    scaled by what that takes from the loss's mean. The public code of Entrocraft zeroes without
    scaling.

    Args:
        success: smallest reward of a success.
    """

    def advantages(self, stats: RolloutStats, reading: Reading) -> Tensor:
        _, wrong = self.successes(stats)
        return without_the_rest(-wrong.double(), stats)
