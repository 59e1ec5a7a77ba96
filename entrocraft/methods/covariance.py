"""Clip-Cov and KL-Cov: restrain tokens of high covariance of advantage and log-probability.

Cui et al., The Entropy Mechanism of RL (arXiv 2505.22617); PRIME-RL/Entropy-Mechanism-of-RL.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from entrocraft.method import number
from entrocraft.methods.token_weights import PPO_LOSSES, UNCLIPPED, TokenMethod, ppo_clip
from entrocraft.rollouts import TokenBatch

__all__ = ["ClipCov", "KLCov", "token_covariance"]


def token_covariance(tokens: TokenBatch) -> Tensor:
    """(b, T): ``(A - mean A) (log p - mean log p)``, means over these rows' response tokens."""
    count = tokens.mask.sum().clamp(min=1)
    advantages = tokens.token_advantages
    mean_logprob = tokens.logprobs.masked_fill(~tokens.mask, 0.0).sum() / count
    return (advantages - advantages.sum() / count) * (tokens.logprobs - mean_logprob)


@dataclass(eq=False)
class ClipCov(TokenMethod):
    """Clip-Cov: of the tokens with lower < cov < upper, a share loses its gradient.

    cov is `token_covariance` of one process's micro-batch, with the present log-probabilities;
    tokens that PPO's clip stopped take no part. Of the rest ``max(int(ratio * tokens), 1)`` at most
    are drawn. They stay in the loss's denominator.

    Source: arXiv 2505.22617, ratio 2e-4, bounds 1 and 5, PPO clip 1 both ways and dual clip 10;
    verl's loss `clip_cov` has no dual clip. The draw has a random generator of its own.

    Args:
        ratio: share of the tokens that may lose their gradient.
        lower: covariance above which a token can be drawn.
        upper: covariance below which it can be.
        seed: of the draw.
    """

    name = "clip_cov"
    coefficient = "ratio"
    losses = PPO_LOSSES
    trainer_options = ppo_clip(low=1.0, high=1.0, dual=10.0)
    memory = ("draws",)
    _draws = 0

    ratio: float = number(2e-4, low=0, high=1)
    lower: float = number(1.0)
    upper: float = number(5.0, above="lower")
    seed: int = number(0)

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        covariance = token_covariance(tokens)
        covariance[~tokens.mask | tokens.clipped(1.0, 1.0)] = -math.inf
        candidates = ((covariance > self.lower) & (covariance < self.upper)).nonzero()
        count = max(int(self.ratio * int(tokens.mask.sum())), 1)
        generator = torch.Generator().manual_seed(
            (int(self.seed) * 1_000_003 + self._draws) % 2**63
        )
        self._draws += 1
        order = torch.randperm(len(candidates), generator=generator)
        drawn = candidates[order[:count].to(candidates.device)]
        advantages = tokens.token_advantages
        advantages[drawn[:, 0], drawn[:, 1]] = 0.0
        return advantages


@dataclass(eq=False)
class KLCov(TokenMethod):
    """KL-Cov: ``L_t = -A r + beta |log p - log p_old|`` on the tokens of highest covariance.

    ``max(1, int(ratio * tokens))`` of a micro-batch by `token_covariance`; elsewhere ``-A r``.
    Nothing is clipped. At the first update of a batch the penalty has no gradient, except where two
    passes differ by rounding: its slope is then 1 or -1, as in verl.

    Source: arXiv 2505.22617, ratio 2e-3 for 7B and 2e-4 for 32B models, beta 1. The penalty enters
    by the advantage: its gradient is exact, its value is not in the loss.

    Args:
        ratio: share of the tokens with a penalty; 0 for none.
        beta: weight of the penalty.
    """

    name = "kl_cov"
    coefficient = "ratio"
    needs_updates = True
    trainer_options = UNCLIPPED

    ratio: float = number(2e-4, low=0, high=1)
    beta: float = number(1.0, low=0)

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        advantages = tokens.token_advantages
        count = int(tokens.mask.sum())
        if count == 0 or self.ratio == 0:
            return advantages
        covariance = token_covariance(tokens).masked_fill(~tokens.mask, -math.inf)
        chosen = torch.zeros_like(tokens.mask).flatten()
        chosen[covariance.flatten().topk(max(1, int(self.ratio * count))).indices] = True
        # the loss turns -A r into -A r grad log p: what is subtracted here comes out as
        # beta sign(log p - log p_old) grad log p, the gradient of the penalty
        slope = self.beta * (tokens.logprobs - tokens.old_logprobs).sign() / tokens.ratio
        return advantages - torch.where(chosen.view_as(tokens.mask), slope, 0.0)
