"""A quantile of the group's rewards as the baseline."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from entrocraft.methods.base import Baseline, Reading, baseline, checked, required_rewards
from entrocraft.methods.groups import groups_of
from entrocraft.rollouts import RolloutStats

__all__ = ["QAE"]

_EPSILON = 1e-6


@baseline("qae")
class QAE(Baseline):
    """``A = (R - b) / (std + eps)``, b the K-quantile of the group's rewards.

    The quantile is the smallest reward that at least a share K of the group does not exceed. With
    rewards 0 and 1: b = 0 in groups with accuracy up to 1 - K, whose successes alone count then,
    else b = 1, whose failures alone count.

    Source: Wu et al., Quantile Advantage Estimation (arXiv 2509.22611), K 0.4. The standard
    deviation is the group's (n - 1 in its denominator, as TRL has it).

    Args:
        quantile: K.
    """

    coefficient = "quantile"

    def __init__(self, schedule: Any = None, *, quantile: float = 0.4) -> None:
        super().__init__(schedule)
        self.quantile = checked(self, "quantile", quantile, high=1, above=0)

    def advantages(self, stats: RolloutStats, reading: Reading) -> Tensor:
        rewards = required_rewards(self, stats)
        advantages = torch.zeros_like(stats.advantages)
        for group in groups_of(self, stats):
            rows = group[~rewards[group].isnan()]
            if len(rows) < 2:
                continue
            seen = rewards[rows]
            # the tolerance keeps K n = 2.0000000001 from meaning the third reward
            place = max(math.ceil(self.quantile * len(rows) - 1e-9) - 1, 0)
            baseline = seen.sort().values[place]
            advantages[rows] = (seen - baseline) / (seen.std() + _EPSILON)
        return advantages
