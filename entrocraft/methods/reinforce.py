"""REINFORCE variants on raw rewards: of a subset, weighted, or with a quantile baseline."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from entrocraft.method import Measurement, Method, number
from entrocraft.rollouts import RolloutStats
from entrocraft.selection.rules import SUCCESS

__all__ = [
    "NSR",
    "PSR",
    "QAE",
    "RAFT",
    "MaxRL",
    "ReinforceRej",
    "RewardMethod",
    "WeightedReinforce",
]


@dataclass(eq=False)
class RewardMethod(Method):
    """A method that tells successes from failures by the raw reward.

    The raw reward is the weighted sum of the trainer's reward functions, so where accuracy and
    format give 1 each, `success`, the smallest reward of a success, has to be above 1.
    """

    success: float = number(SUCCESS)

    def successes(self, stats: RolloutStats) -> tuple[Tensor, Tensor]:
        """(B,) bool twice: rollouts that succeeded, and those that failed.

        With the default, rewards in {0, 1} and in {-1, 1} mean the same; a rollout that could not
        be scored is neither.
        """
        # in 32 bits as trainers have rewards, where 0.7 is a little less than in 64
        rewards = required(self, stats, "rewards").float()
        return rewards >= self.success, rewards < self.success


def required(owner: Method, stats: RolloutStats, name: str) -> Tensor:
    """(B,) of the batch's `rewards`, NaN where a rollout could not be scored, or `group`.

    Raises:
        ValueError: the batch has none.
    """
    if (found := getattr(stats, name)) is None:
        use = {"rewards": "trains on raw rewards", "group": "compares the rollouts of a prompt"}
        raise ValueError(
            f"the method {owner.name!r} {use[name]}; put RolloutBatch.{name} (B,) into the batch"
        )
    return found


def drop_zeroed(advantages: Tensor, stats: RolloutStats) -> Tensor:
    """Advantages (B,) as if rollouts with advantage 0 had been dropped from the batch.

    Zeroed rollouts stay in the loss's denominator; scaling by all over kept takes them out of it:
    tokens where the loss divides by their number (TRL's default), else rollouts, those without a
    token included, as TRL counts them too.
    """
    counted = torch.ones_like(stats.tokens) if stats.by_rollout else stats.tokens
    kept = float(counted[advantages != 0].sum())
    return advantages * (float(counted.sum()) / kept) if kept else torch.zeros_like(advantages)


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
        mixed, group = torch.zeros_like(right), required(self, stats, "group")
        for prompt in group.unique():
            rows = group == prompt
            mixed[rows] = right[rows].any() & wrong[rows].any()
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


@dataclass(eq=False)
class WeightedReinforce(RewardMethod):
    """W-REINFORCE: ``A = weight`` for a success and -1 for a failure.

    Source: as PSR, weight 0.1.

    Args:
        weight: advantage of a success.
        success: smallest reward of a success.
    """

    name = "w_reinforce"
    coefficient = "weight"

    weight: float = number(0.1, low=0)

    def advantages(self, stats: RolloutStats, seen: Measurement) -> Tensor:
        right, wrong = self.successes(stats)
        return self.weight * right.double() - wrong.double()


def _scored(rewards: Tensor, group: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each prompt with any: the rollouts that could be scored, (B,) bool, and their rewards."""
    for prompt in group.unique():
        rows = (group == prompt) & ~rewards.isnan()
        if bool(rows.any()):
            yield rows, rewards[rows]


class MaxRL(Method):
    """``A = (R - mean) / mean`` over a prompt's rewards, 0 where the mean is 0.

    With rewards 0 and 1 a prompt's gradient is that of log pass rate, estimated: a success
    weighs in inverse to the pass rate.

    Source: Maximum likelihood RL (arXiv 2602.02710); repository tajwarfahim/maxrl.
    """

    name = "maxrl"

    def advantages(self, stats: RolloutStats, seen: Measurement) -> Tensor:
        rewards, group = required(self, stats, "rewards"), required(self, stats, "group")
        advantages = torch.zeros_like(stats.advantages)
        for rows, known in _scored(rewards, group):
            mean = float(known.mean())
            if mean > 0 and bool((known != known[0]).any()):
                advantages[rows] = (known - mean) / mean
        return advantages


@dataclass(eq=False)
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

    quantile: float = number(0.4, above=0, high=1)

    def advantages(self, stats: RolloutStats, seen: Measurement) -> Tensor:
        rewards, group = required(self, stats, "rewards"), required(self, stats, "group")
        advantages = torch.zeros_like(stats.advantages)
        for rows, known in _scored(rewards, group):
            if len(known) < 2:
                continue
            # the tolerance keeps K n = 2.0000000001 from meaning the third reward
            place = max(math.ceil(self.quantile * len(known) - 1e-9) - 1, 0)
            baseline = known.sort().values[place]
            advantages[rows] = (known - baseline) / (known.std() + 1e-6)
        return advantages
