"""Sampling: from keep probabilities to the rollouts that are kept."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["systematic_draw"]


def systematic_draw(probabilities: Tensor, uniform: float, order: Tensor | None = None) -> Tensor:
    """Keep or reject with the given probabilities, by systematic sampling: (B,) bool.

    One uniform number in [0, 1) places a comb of unit distance over the cumulative sums, so that
    each rollout is kept with its own probability and the number kept differs from its expectation
    by less than one. Along `order` (a permutation) every stretch is balanced in the same way.
    """
    p = probabilities.double()
    if order is not None:
        drawn = torch.empty(len(p), dtype=torch.bool)
        drawn[order] = systematic_draw(p[order], uniform)
        return drawn
    # rollouts that are certain stay out of the comb: no rounding can lose or win one
    certain, open_ = p >= 1, (p > 0) & (p < 1)
    edges = torch.cumsum(torch.where(open_, p, torch.zeros_like(p)), 0)
    ticks = torch.floor(edges - uniform)
    before = torch.cat([torch.floor(torch.tensor([-uniform], dtype=ticks.dtype)), ticks[:-1]])
    return certain | (open_ & (ticks > before))
