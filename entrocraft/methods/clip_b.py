"""No punishment for likely tokens that stand out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from entrocraft.methods.base import TokenBaseline, baseline, checked
from entrocraft.rollouts.tokens import TokenBatch

__all__ = ["ClipB"]


@baseline("clip_b")
class ClipB(TokenBaseline):
    """Clip_B: tokens with A < 0 stay only if ``S - mean S >= -mu std S``, S = p (H + log p).

    Mean and standard deviation (population) over the response tokens of the rollout batch. Tokens
    that go leave the token mean too: the others are scaled by tokens / tokens left.

    Source: Wang et al., On the Entropy Dynamics in Reinforcement Fine-Tuning (arXiv
    2602.03392), mu 2.5; Trinity-RFT, branch example/entropy, which shrinks the response mask.

    Args:
        mu: threshold in standard deviations.
    """

    scope = "batch"
    coefficient = "mu"

    def __init__(self, schedule: Any = None, *, mu: float = 2.5) -> None:
        super().__init__(schedule)
        self.mu = checked(self, "mu", mu, 0)

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        surprise = tokens.logprobs.exp() * (tokens.entropies + tokens.logprobs)
        mean = tokens.mean(surprise)
        deviation = math.sqrt(tokens.mean((surprise - mean).square()))
        keep = tokens.mask
        if deviation > 1e-12:
            stands_out = surprise - mean < -self.mu * deviation
            keep = keep & ~(stands_out & (tokens.token_advantages < 0))
        left = tokens.mean(keep.float())
        return torch.where(keep, tokens.token_advantages / max(left, 1e-12), 0.0)
