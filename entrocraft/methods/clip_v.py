"""No punishment for tokens whose punishment would cost the most entropy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from entrocraft.methods.base import TokenBaseline, baseline, checked
from entrocraft.rollouts.tokens import TokenBatch

__all__ = ["ClipV"]


@baseline("clip_v")
class ClipV(TokenBaseline):
    """Clip_V: tokens with A <= 0 stay only if ``x <= mu std x``, x = N - S.

    S = p (H + log p) of the sampled token and N = sum_j p_j^2 (H + log p_j), so that x is the logit
    level's sensitivity. If more than `max_fraction` of the response tokens would go, only the
    ``max(int(max_fraction * tokens), 1)`` with the largest x do. The others are scaled by tokens /
    tokens left.

    Source: Wang et al., On the Entropy Dynamics in Reinforcement Fine-Tuning (arXiv
    2602.03392), mu 8.5 and at most 1e-4 of the tokens; Trinity-RFT, branch example/entropy. The
    threshold is not centerd although the standard deviation is, as there. The limit on their number
    is shared out evenly over processes.

    Args:
        mu: threshold in standard deviations.
        max_fraction: of the response tokens, at most, that go.
    """

    scope = "batch"
    coefficient = "mu"

    def __init__(
        self, schedule: Any = None, *, mu: float = 8.5, max_fraction: float = 1e-4
    ) -> None:
        super().__init__(schedule)
        self.mu = checked(self, "mu", mu, 0)
        self.max_fraction = checked(self, "max_fraction", max_fraction, 0, 1)

    @property
    def effect(self) -> str:
        return "logit"

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        assert tokens.sensitivity is not None, "the adapter serves the level `effect`"
        value, advantages = tokens.sensitivity, tokens.token_advantages
        mean = tokens.mean(value)
        deviation = math.sqrt(tokens.mean((value - mean).square()))
        go = tokens.mask & (advantages <= 0) & (value > self.mu * deviation)
        if tokens.mean(go.float()) > self.max_fraction:
            limit = max(int(self.max_fraction * int(tokens.mask.sum())), 1)
            standing = torch.where(go & (advantages < 0), value, -math.inf).flatten()
            largest = standing.topk(min(limit, len(standing)))
            go = torch.zeros_like(standing, dtype=torch.bool)
            go[largest.indices[largest.values > -math.inf]] = True
            go = go.view_as(tokens.mask)
        keep = tokens.mask & ~go
        left = tokens.mean(keep.float())
        return torch.where(keep, advantages / max(left, 1e-12), 0.0)
