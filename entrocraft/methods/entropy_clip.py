"""Clip_B and Clip_V: drop tokens of negative advantage whose update would cost the most entropy.

Wang et al., On the Entropy Dynamics in Reinforcement Fine-Tuning (arXiv 2602.03392); Trinity-RFT,
branch example/entropy, which shrinks the response mask.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from entrocraft.method import number
from entrocraft.methods.token_weights import TokenMethod, drop_tokens
from entrocraft.rollouts import TokenBatch

__all__ = ["ClipB", "ClipV"]


def _mean_and_deviation(tokens: TokenBatch, values: Tensor) -> tuple[float, float]:
    mean = tokens.mean(values)
    return mean, math.sqrt(tokens.mean((values - mean).square()))


@dataclass(eq=False)
class ClipB(TokenMethod):
    """Clip_B: tokens with A < 0 stay only if ``S - mean S >= -mu std S``, S = p (H + log p).

    Mean and standard deviation (population) over the response tokens of the rollout batch. Tokens
    that go leave the token mean too: the others are scaled by tokens / tokens left.

    Source: arXiv 2602.03392, mu 2.5.

    Args:
        mu: threshold in standard deviations.
    """

    name = "clip_b"
    token_scope = "batch"
    coefficient = "mu"

    mu: float = number(2.5, low=0)

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        value = tokens.logprobs.exp() * (tokens.entropies + tokens.logprobs)
        mean, deviation = _mean_and_deviation(tokens, value)
        keep = tokens.mask
        if deviation > 1e-12:
            outlier = value - mean < -self.mu * deviation
            keep = keep & ~(outlier & (tokens.token_advantages < 0))
        return drop_tokens(tokens, keep)


@dataclass(eq=False)
class ClipV(TokenMethod):
    """Clip_V: tokens with A <= 0 stay only if ``x <= mu std x``, x = N - S.

    S = p (H + log p) of the sampled token and N = sum_j p_j^2 (H + log p_j), so that x is the
    sensitivity of the effect level `logit`. If more than `max_fraction` of the response tokens
    would go, only ``max(int(max_fraction * tokens), 1)`` of largest x and A < 0 do. The others are
    scaled by tokens / tokens left.

    Source: arXiv 2602.03392, mu 8.5 and at most 1e-4 of the tokens. The threshold is not centered
    though the standard deviation is, as there. The limit is per process, of its own tokens.

    Args:
        mu: threshold in standard deviations.
        max_fraction: of the response tokens, at most, that go.
    """

    name = "clip_v"
    token_scope = "batch"
    coefficient = "mu"
    effect = "logit"

    mu: float = number(8.5, low=0)
    max_fraction: float = number(1e-4, low=0, high=1)

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        assert tokens.sensitivity is not None, "the adapter serves the level `effect`"
        value, advantages = tokens.sensitivity, tokens.token_advantages
        _, deviation = _mean_and_deviation(tokens, value)
        go = tokens.mask & (advantages <= 0) & (value > self.mu * deviation)
        if tokens.mean(go.float()) > self.max_fraction:
            limit = max(int(self.max_fraction * int(tokens.mask.sum())), 1)
            ranked = torch.where(go & (advantages < 0), value, -math.inf).flatten()
            largest = ranked.topk(min(limit, len(ranked)))
            go = torch.zeros_like(ranked, dtype=torch.bool)
            go[largest.indices[largest.values > -math.inf]] = True
            go = go.view_as(tokens.mask)
        return drop_tokens(tokens, tokens.mask & ~go)
