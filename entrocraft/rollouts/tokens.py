"""The token batch: what the loss shows a method that works token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TokenBatch"]


def _alone(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class TokenBatch:
    """Rows of one process on their way into the loss; nothing in here carries a gradient.

    Attributes:
        step: optimizer steps taken before.
        advantages: (b,), as decided for the rollout batch; (b, T) from a trainer in which they may
            differ from token to token.
        mask: (b, T) bool, true on the policy's own response tokens.
        logprobs: (b, T), nats, of the sampled tokens under the present policy.
        old_logprobs: (b, T), under the policy at the start of the rollout batch's updates.
        entropies: (b, T), nats, of the present policy.
        old_entropies: (b, T), of the policy at the start of the rollout batch's updates.
        sensitivity: (b, T), nats per unit of advantage (`entrocraft.effects`), or None if the
            method asks for no effect level.
        share: part of an optimizer step that these rows are, over all processes.
        total: sums a tensor over all processes; every process must call it equally often.
    """

    step: int
    advantages: Tensor
    mask: Tensor
    logprobs: Tensor
    old_logprobs: Tensor
    entropies: Tensor
    old_entropies: Tensor
    sensitivity: Tensor | None = None
    share: float = 1.0
    total: Callable[[Tensor], Tensor] = _alone

    @property
    def token_advantages(self) -> Tensor:
        """(b, T): a token has its rollout's advantage or its own, 0 outside the mask."""
        rows = self.advantages
        return (rows if rows.ndim == 2 else rows[:, None]) * self.mask

    @property
    def ratio(self) -> Tensor:
        """(b, T) importance ratio of each token; 1 outside the mask."""
        return torch.where(self.mask, self.logprobs - self.old_logprobs, 0.0).exp()

    def clipped(self, low: float, high: float) -> Tensor:
        """(b, T) bool: tokens whose gradient PPO's clip to [1 - low, 1 + high] takes away."""
        advantages, ratio = self.token_advantages, self.ratio
        above = (advantages > 0) & (ratio > 1 + high)
        return above | ((advantages < 0) & (ratio < 1 - low))

    def mean(self, values: Tensor, where: Tensor | None = None, none: float = 0.0) -> float:
        """Mean of (b, T) values over response tokens `where`, of all processes; `none` if none."""
        mask = self.mask if where is None else self.mask & where
        # Apple's GPUs have no float64
        exact = torch.float32 if values.device.type == "mps" else torch.float64
        kept = torch.where(mask, values, torch.zeros_like(values)).to(exact)
        total, count = self.total(torch.stack([kept.sum(), mask.sum().to(exact)])).tolist()
        return total / count if count else none
