"""Raw rewards: successes and failures, and the rollouts of one prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from entrocraft.method import Method, checked
from entrocraft.rollouts import RolloutStats
from entrocraft.selection.rules import SUCCESS

__all__ = ["RewardMethod", "drop_zeroed", "groups_of", "required_rewards"]


class RewardMethod(Method):
    """A method that tells successes from failures by the raw reward.

    The raw reward is the weighted sum of the trainer's reward functions, so where accuracy and
    format give 1 each, a success has to be above 1.

    Args:
        success: smallest reward of a success.
    """

    def __init__(self, schedule: Any = None, *, success: float = SUCCESS) -> None:
        super().__init__(schedule)
        self.success = checked(self, "success", success)

    def successes(self, stats: RolloutStats) -> tuple[Tensor, Tensor]:
        """(B,) bool twice: rollouts that succeeded, and those that failed.

        With the default, rewards in {0, 1} and in {-1, 1} mean the same; a rollout that could not
        be scored is neither.
        """
        # in 32 bits as trainers have rewards, where 0.7 is a little less than in 64
        rewards = required_rewards(self, stats).float()
        return rewards >= self.success, rewards < self.success


def required_rewards(owner: Method, stats: RolloutStats) -> Tensor:
    """(B,) raw rewards, NaN where a rollout could not be scored.

    Raises:
        ValueError: the batch has none.
    """
    if stats.rewards is None:
        raise ValueError(
            f"the method {owner.name!r} trains on raw rewards; put RolloutBatch.rewards (B,) into "
            "the batch"
        )
    return stats.rewards


def groups_of(owner: Method, stats: RolloutStats) -> Iterator[Tensor]:
    """Row numbers of every group, the rollouts of one prompt.

    Raises:
        ValueError: the batch does not say which rollouts belong together.
    """
    if stats.group is None:
        raise ValueError(
            f"the method {owner.name!r} compares the rollouts of a prompt; put RolloutBatch.group "
            "(B,) into the batch"
        )
    for number in stats.group.unique():
        yield torch.nonzero(stats.group == number)[:, 0]


def drop_zeroed(advantages: Tensor, stats: RolloutStats) -> Tensor:
    """Advantages (B,) as if rollouts with advantage 0 had been dropped from the batch.

    Zeroed rollouts stay in the loss's denominator; scaling by all over kept takes them out of it:
    tokens where the loss divides by their number (TRL's default), else rollouts, those without a
    token included, as TRL counts them too.
    """
    counted = torch.ones_like(stats.tokens) if stats.by_rollout else stats.tokens
    kept = float(counted[advantages != 0].sum())
    return advantages * (float(counted.sum()) / kept) if kept else torch.zeros_like(advantages)
