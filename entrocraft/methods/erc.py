"""Entropy ratio clipping: no gradient for tokens whose entropy has changed too far."""

from dataclasses import dataclass

import torch
from torch import Tensor

from entrocraft.method import number
from entrocraft.methods.token_weights import PPO_LOSSES, TokenMethod
from entrocraft.rollouts import TokenBatch

__all__ = ["ERC"]

_EPSILON = 1e-8


@dataclass(eq=False)
class ERC(TokenMethod):
    """A token trains only while ``low < H / H_old < high``.

    H is the entropy of the token's position now, H_old that before the batch's first update. The
    token stays in the loss's denominator. Underneath is PPO's clip.

    Source: Entropy Ratio Clipping (arXiv 2512.05591), Kwai-Klear; 1e-8 is added to both entropies.
    Its other base, the loss of `ce_gppo`, is left out.

    Args:
        low: smallest ratio of entropies, exclusive.
        high: largest ratio of entropies, exclusive.
    """

    name = "erc"
    coefficient = "high"
    losses = PPO_LOSSES
    needs_updates = True

    low: float = number(0.8, low=0)
    high: float = number(1.2, above="low")

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        ratio = (tokens.entropies + _EPSILON) / (tokens.old_entropies + _EPSILON)
        inside = (ratio > self.low) & (ratio < self.high)
        return torch.where(inside, tokens.token_advantages, 0.0)
