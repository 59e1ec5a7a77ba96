"""No gradient for tokens whose entropy has changed too far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from entrocraft.methods.base import PPO_LOSSES, TokenBaseline, baseline, checked
from entrocraft.rollouts.tokens import TokenBatch

__all__ = ["ERC"]

_EPSILON = 1e-8


@baseline("erc")
class ERC(TokenBaseline):
    """Entropy ratio clipping: a token trains only while ``low < H / H_old < high``.

    H is the entropy of the token's position now, H_old that before the batch's first update. The
    token stays in the loss's denominator. Underneath is PPO's clip.

    Source: Entropy Ratio Clipping (arXiv 2512.05591), Kwai-Klear; low 0.8 and high 1.2 in its
    configurations, 1e-8 added to both entropies. Its other base, the loss of `ce_gppo`, is left
    out.

    Args:
        low: smallest ratio of entropies, exclusive.
        high: largest ratio of entropies, exclusive.
    """

    coefficient = "high"
    losses = PPO_LOSSES
    needs_updates = True

    def __init__(self, schedule: Any = None, *, low: float = 0.8, high: float = 1.2) -> None:
        super().__init__(schedule)
        self.low = checked(self, "low", low, 0)
        self.high = checked(self, "high", high, above=low)

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        ratio = (tokens.entropies + _EPSILON) / (tokens.old_entropies + _EPSILON)
        inside = (ratio > self.low) & (ratio < self.high)
        return torch.where(inside, tokens.token_advantages, 0.0)
