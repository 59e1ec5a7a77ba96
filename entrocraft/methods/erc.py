"""Entropy ratio clipping: no gradient for tokens whose entropy has changed too far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from entrocraft.method import checked
from entrocraft.methods.token_weights import PPO_LOSSES, TokenMethod
from entrocraft.rollouts import TokenBatch

__all__ = ["ERC"]

_EPSILON = 1e-8


class ERC(TokenMethod):
    """A token trains only while ``low < H / H_old < high``.

    H is the entropy of the token's position now, H_old that before the batch's first update. The
    token stays in the loss's denominator. Underneath is PPO's clip.

    Source: Entropy Ratio Clipping (arXiv 2512.05591), Kwai-Klear; 1e-8 added to both
    entropies. Its other base, the loss of `ce_gppo`, is left out.

    Args:
        low: smallest ratio of entropies, exclusive.
        high: largest ratio of entropies, exclusive.
    """

    name = "erc"
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
