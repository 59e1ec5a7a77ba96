"""Raw rewards of the groups that disagree."""

from __future__ import annotations

import torch
from torch import Tensor

from entrocraft.methods.base import Reading, RewardBaseline, baseline
from entrocraft.methods.groups import groups_of
from entrocraft.rollouts import RolloutStats

__all__ = ["ReinforceRej"]


@baseline("reinforce_rej")
class ReinforceRej(RewardBaseline):
    """``A = R`` (1 or -1), 0 in groups whose rollouts all succeeded or all failed.

    Source: Xiong et al., A Minimalist Approach to LLM Reasoning (arXiv 2504.11343); repository
    Minimal-RL, which zeroes groups with no spread of rewards, as here.

    Args:
        success: smallest reward of a success.
    """

    def advantages(self, stats: RolloutStats, reading: Reading) -> Tensor:
        right, wrong = self.successes(stats)
        raw = right.double() - wrong.double()
        mixed = torch.zeros_like(right)
        for rows in groups_of(self, stats):
            mixed[rows] = bool(right[rows].any()) and bool(wrong[rows].any())
        return torch.where(mixed, raw, 0.0)
