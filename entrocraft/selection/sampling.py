"""Sampling: from keep probabilities to the weights that multiply the advantages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["SelectionSettings", "systematic_draw"]

_LARGEST_WEIGHT = 10.0


@dataclass(frozen=True)
class SelectionSettings:
    """How rollouts are selected under a given pressure.

    Args:
        floor: for the rule tilt: least keep probability of an active rollout.
        constant_reward_groups: for the rule tilt: let rollouts of groups in which all succeeded or
            all failed, whose advantage is 0, join with raw rewards (+1, -1) when they push the
            wanted way. Needs rewards and groups.
        draw: True keeps or rejects each rollout by chance; False weighs each by its probability.
        correction: kappa in [0, 1]: a rollout kept with probability a is weighed by
            ``a ** -kappa``, at most 10. 1 makes the expected gradient that of plain RL, and so
            undoes the control that rejection had.
        effective_batch: active rollouts to keep, at most; a batch that leaves more is thinned
            by chance, all alike, so that every update sees the same number; None keeps all.
        renormalize: "none"; "rollouts" or "tokens" scale what is kept by the share of active
            rollouts that was rejected, so that the loss of a smaller batch comes out (at most 10
            times).

    Raises:
        ValueError: a setting out of range, or two that exclude each other.
    """

    floor: float = 0.02
    constant_reward_groups: bool = False
    draw: bool = True
    correction: float = 0.0
    effective_batch: int | None = None
    renormalize: Literal["none", "rollouts", "tokens"] = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor must be a probability in [0, 1), got {self.floor}")
        if not 0 <= self.correction <= 1:
            raise ValueError(
                f"correction must be in [0, 1], got {self.correction}; 0 leaves kept rollouts as "
                "they are, 1 weighs them by 1 / probability"
            )
        if self.renormalize not in ("none", "rollouts", "tokens"):
            raise ValueError(
                f"renormalize must be 'none', 'rollouts' or 'tokens', got {self.renormalize!r}"
            )
        if self.effective_batch is not None and self.effective_batch < 1:
            raise ValueError(
                f"effective_batch must be at least 1 rollout, got {self.effective_batch}; None "
                "keeps what is left"
            )
        if self.effective_batch is not None and not self.draw:
            raise ValueError(
                "effective_batch thins by chance and needs draw=True; without a draw every "
                "rollout stays, only weighed down"
            )

    def thinned(self, probabilities: Tensor, active: Tensor) -> Tensor:
        """Scale the active rollouts' probabilities (B,) until they add up to `effective_batch` at most."""
        if self.effective_batch is None:
            return probabilities
        left = float(probabilities[active].sum())
        share = min(1.0, self.effective_batch / left) if left > 0 else 1.0
        return torch.where(active, probabilities * share, probabilities)

    def expected(
        self, probabilities: Tensor, active: Tensor, tokens: Tensor, joining: Tensor | None = None
    ) -> Tensor:
        """Return the expected weights (B,) of keep probabilities (B,); see `weights`."""
        kept = self.thinned(probabilities, active)
        return kept * self._scaled(probabilities, kept, active, tokens, joining)

    def weights(
        self,
        probabilities: Tensor,
        active: Tensor,
        tokens: Tensor,
        order: Tensor,
        uniform: float,
        joining: Tensor | None = None,
    ) -> Tensor:
        """Draw, or weigh: (B,) float64.

        Args:
            probabilities: (B,) keep probabilities of a rule.
            active: (B,) bool, rollouts with tokens and an advantage other than 0.
            tokens: (B,) response tokens.
            order: a permutation; the draw is balanced in every stretch of it.
            uniform: one number in [0, 1), all the chance that a decision needs.
            joining: (B,) bool, active rollouts that plain RL would not train on: they make up for
                nothing that was rejected, and correction leaves them alone; None for none.
        """
        kept = self.thinned(probabilities, active)
        if self.draw:
            kept = systematic_draw(kept, uniform, order).double()
        return kept * self._scaled(probabilities, kept, active, tokens, joining)

    def _scaled(
        self,
        probabilities: Tensor,
        kept: Tensor,
        active: Tensor,
        tokens: Tensor,
        joining: Tensor | None,
    ) -> Tensor:
        """What correction and renormalization multiply the kept rollouts by: (B,)."""
        corrected = self._corrected(probabilities)
        if joining is not None:
            corrected, active = corrected.masked_fill(joining, 1.0), active & ~joining
        return corrected * self._factor(kept, active, tokens)

    def _corrected(self, probabilities: Tensor) -> Tensor:
        if self.correction == 0:
            return torch.ones_like(probabilities)
        # a rollout of probability 0 is never kept: any finite weight will do
        return probabilities.clamp(min=1e-300).pow(-self.correction).clamp(max=_LARGEST_WEIGHT)

    def _factor(self, kept: Tensor, active: Tensor, tokens: Tensor) -> float:
        if self.renormalize == "none":
            return 1.0
        size = torch.ones_like(tokens) if self.renormalize == "rollouts" else tokens
        left = float((size * torch.where(active, kept, 1.0)).sum())
        factor = float(size.sum()) / left if left else math.inf
        return min(factor, _LARGEST_WEIGHT)


def systematic_draw(probabilities: Tensor, uniform: float, order: Tensor | None = None) -> Tensor:
    """Keep or reject with the given probabilities, by systematic sampling: (B,) bool.

    One uniform number in [0, 1) places a comb of unit distance over the cumulative stats, so that
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
