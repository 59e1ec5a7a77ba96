"""Successes alone."""

from __future__ import annotations

from torch import Tensor

from entrocraft.methods.base import Reading, RewardBaseline, baseline
from entrocraft.rollouts import RolloutStats

__all__ = ["RAFT"]


@baseline("raft++")
class RAFT(RewardBaseline):
    """RAFT++: ``A = max(R, 0)`` with R = 1 for a success and -1 for a failure; no baseline.

    The trainer's importance ratio and clip are what "++" stands for.

    Source: Xiong et al., A Minimalist Approach to LLM Reasoning (arXiv 2504.11343); repository
    Minimal-RL. There a small KL loss (0.001) and 4 rollouts per prompt; both are the user's here.

    Args:
        success: smallest reward of a success.
    """

    def advantages(self, stats: RolloutStats, reading: Reading) -> Tensor:
        right, _ = self.successes(stats)
        return right.double()
