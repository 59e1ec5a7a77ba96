"""REINFORCE variants on raw rewards: of a subset, weighted, or with a quantile baseline."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from entrocraft.method import Measurement, Method, checked
from entrocraft.methods.rewards import RewardMethod, drop_zeroed, groups_of, required_rewards
from entrocraft.rollouts import RolloutStats
from entrocraft.selection.rules import SUCCESS

__all__ = ["NSR", "PSR", "QAE", "RAFT", "ReinforceRej", "WeightedReinforce"]


class RAFT(RewardMethod):
    """RAFT++: ``A = max(R, 0)`` with R = 1 for a success and -1 for a failure; no baseline.

    Source: Xiong et al., A Minimalist Approach to LLM Reasoning (arXiv 2504.11343); repository
    Minimal-RL, with a KL loss of 0.001. "++" stands for importance ratio and clip: the trainer's.

    Args:
        success: smallest reward of a success.
    """

    name = "raft++"

    def advantages(self, stats: RolloutStats, seen: Measurement) -> Tensor:
        right, _ = self.successes(stats)
        return right.double()


class ReinforceRej(RewardMethod):
    """``A = R`` (1 or -1), 0 in groups whose rollouts all succeeded or all failed.

    Source: as RAFT++.

    Args:
        success: smallest reward of a success.
    """

    name = "reinforce_rej"

    def advantages(self, stats: RolloutStats, seen: Measurement) -> Tensor:
        right, wrong = self.successes(stats)
        mixed = torch.zeros_like(right)
        for rows in groups_of(self, stats):
            mixed[rows] = bool(right[rows].any()) and bool(wrong[rows].any())
        return torch.where(mixed, right.double() - wrong.double(), 0.0)


class PSR(RewardMethod):
    """Positive sample reinforcement: ``A = R`` with rewards 0 and 1; failures are dropped.

    Source: Zhu et al., The Surprising Effectiveness of Negative Reinforcement (arXiv 2506.01347);
    repository RLVR-Decomposed. It drops the rows; here they get advantage 0 and the others are
    scaled by what that takes from the loss's mean.

    Args:
        success: smallest reward of a success.
    """

    name = "psr"

    def advantages(self, stats: RolloutStats, seen: Measurement) -> Tensor:
        right, _ = self.successes(stats)
        return drop_zeroed(right.double(), stats)


class NSR(RewardMethod):
    """Negative sample reinforcement: ``A = R - 1`` with rewards 0 and 1; successes are dropped.

    Source: as PSR, and rows are dropped as there; the public code of Entrocraft zeroes them
    without scaling the others.

    Args:
        success: smallest reward of a success.
    """

    name = "nsr"

    def advantages(self, stats: RolloutStats, seen: Measurement) -> Tensor:
        _, wrong = self.successes(stats)
        return drop_zeroed(-wrong.double(), stats)


class WeightedReinforce(RewardMethod):
    """W-REINFORCE: ``A = weight`` for a success and -1 for a failure.

    Source: as PSR, weight 0.1.

    Args:
        weight: advantage of a success.
        success: smallest reward of a success.
    """

    name = "w_reinforce"
    coefficient = "weight"

    def __init__(
        self, schedule: Any = None, *, weight: float = 0.1, success: float = SUCCESS
    ) -> None:
        super().__init__(schedule, success=success)
        self.weight = checked(self, "weight", weight, 0)

    def advantages(self, stats: RolloutStats, seen: Measurement) -> Tensor:
        right, wrong = self.successes(stats)
        return self.weight * right.double() - wrong.double()


class QAE(Method):
    """Quantile advantage: ``A = (R - b) / (std + 1e-6)``, b the K-quantile of the group's rewards.

    The quantile is the smallest reward that at least a share K of the group does not exceed. With
    rewards 0 and 1: b = 0 in groups with accuracy up to 1 - K, which train on successes only, else
    b = 1, and they train on failures only.

    Source: Wu et al., Quantile Advantage Estimation (arXiv 2509.22611). The std is TRL's (n - 1).

    Args:
        quantile: K.
    """

    name = "qae"
    coefficient = "quantile"

    def __init__(self, schedule: Any = None, *, quantile: float = 0.4) -> None:
        super().__init__(schedule)
        self.quantile = checked(self, "quantile", quantile, high=1, above=0)

    def advantages(self, stats: RolloutStats, seen: Measurement) -> Tensor:
        rewards = required_rewards(self, stats)
        advantages = torch.zeros_like(stats.advantages)
        for group in groups_of(self, stats):
            rows = group[~rewards[group].isnan()]
            if len(rows) < 2:
                continue
            known = rewards[rows]
            # the tolerance keeps K n = 2.0000000001 from meaning the third reward
            place = max(math.ceil(self.quantile * len(rows) - 1e-9) - 1, 0)
            baseline = known.sort().values[place]
            advantages[rows] = (known - baseline) / (known.std() + 1e-6)
        return advantages
