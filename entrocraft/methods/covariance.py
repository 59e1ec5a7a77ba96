"""Covariance of advantage and log-probability, token by token."""

from __future__ import annotations

from torch import Tensor

from entrocraft.rollouts.tokens import TokenBatch

__all__ = ["token_covariance"]


def token_covariance(tokens: TokenBatch) -> Tensor:
    """(b, T): ``(A - mean A) (log p - mean log p)``, means over these rows' response tokens.

    Each rollout weighs by its tokens. Values outside the mask mean nothing.

    Source: Cui et al., The Entropy Mechanism of RL (arXiv 2505.22617).
    """
    mask = tokens.mask
    count = mask.sum().clamp(min=1)
    advantages = tokens.advantages[:, None].expand_as(mask)
    mean_advantage = (advantages * mask).sum() / count
    mean_logprob = tokens.logprobs.masked_fill(~mask, 0.0).sum() / count
    return (advantages - mean_advantage) * (tokens.logprobs - mean_logprob)
