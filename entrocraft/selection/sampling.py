"""Sampling: from keep probabilities to the weights that multiply the advantages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SelectionSettings", "systematic_draw"]


@dataclass(frozen=True)
class SelectionSettings:
    """How rollouts are selected under a given pressure.

    Args:
        floor: for the rule tilt: least keep probability of an active rollout.
        constant_reward_groups: for the rule tilt: let rollouts of groups in which all succeeded or
            all failed, whose advantage is 0, join with raw rewards (+1, -1) when they push the
            wanted way. Needs rewards and groups.
        draw: True keeps or rejects each rollout by chance; False weighs each by its probability.
        effective_batch: active rollouts to keep, at most; a batch that leaves more is thinned by
            chance, all with one factor, so that every update sees the same number; None keeps all.

    Raises:
        ValueError: a setting out of range, or two that exclude each other.
    """

    floor: float = 0.02
    constant_reward_groups: bool = False
    draw: bool = True
    effective_batch: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor must be a probability in [0, 1), got {self.floor}")
        for name in ("constant_reward_groups", "draw"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        whole = isinstance(self.effective_batch, int) and self.effective_batch >= 1
        if self.effective_batch is not None and not whole:
            raise ValueError(
                f"effective_batch must be at least 1 rollout, got {self.effective_batch}; None "
                "keeps what is left"
            )
        if self.effective_batch is not None and not self.draw:
            raise ValueError(
                "effective_batch thins by chance and needs draw=True; without a draw every "
                "rollout stays, only weighed down"
            )

    def expected(self, probabilities: Tensor, active: Tensor) -> Tensor:
        """Expected weights (B,): probabilities, those of active rollouts thinned if need be."""
        if self.effective_batch is None:
            return probabilities
        left = float(probabilities[active].sum())
        share = min(1.0, self.effective_batch / left) if left > 0 else 1.0
        return torch.where(active, probabilities * share, probabilities)

    def weights(
        self, probabilities: Tensor, active: Tensor, order: Tensor, uniform: float
    ) -> Tensor:
        """Draw, or weigh: (B,) float64.

        Args:
            probabilities: (B,) keep probabilities of a rule.
            active: (B,) bool, rollouts with tokens and an advantage other than 0.
            order: a permutation; the draw is balanced in every stretch of it.
            uniform: one number in [0, 1), all the chance that a decision needs.
        """
        expected = self.expected(probabilities, active)
        return systematic_draw(expected, uniform, order).double() if self.draw else expected


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
