"""Rollouts of one prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entrocraft.rollouts import RolloutStats

if TYPE_CHECKING:
    from entrocraft.methods.base import Baseline

__all__ = ["groups_of"]


def groups_of(owner: Baseline, stats: RolloutStats) -> Iterator[Tensor]:
    """Row numbers of every group of rollouts of one prompt.

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
