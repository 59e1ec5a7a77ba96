"""No gradient for some tokens of high covariance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from entrocraft.methods.base import PPO_LOSSES, TokenBaseline, baseline, checked
from entrocraft.methods.covariance import token_covariance
from entrocraft.rollouts.tokens import TokenBatch

__all__ = ["ClipCov"]


@baseline("clip_cov")
class ClipCov(TokenBaseline):
    """Clip-Cov: of the tokens with lb < cov < ub, a share of the batch loses its gradient.

    ``cov_i = (A_i - mean A) (log p_i - mean log p)`` over the response tokens of a micro-batch,
    with the present log-probabilities; tokens that PPO's clip stopped take no part. Of the rest,
    ``max(int(ratio * tokens), 1)`` at most are drawn. They stay in the loss's denominator.

    Source: Cui et al., The Entropy Mechanism of RL (arXiv 2505.22617), ratio 2e-4, bounds 1 and 5,
    PPO clip 1 both ways and dual clip 10; repository PRIME-RL/Entropy-Mechanism-of-RL, and verl's
    loss `clip_cov`, which has no dual clip. The micro-batch is one process's, as there. The draw
    here has a generator of its own, so that the trainer's random numbers stay as they are.

    Args:
        ratio: share of the tokens that may lose their gradient.
        lower: covariance above which a token can be drawn.
        upper: covariance below which it can be.
        seed: of the draw.
    """

    coefficient = "ratio"
    losses = PPO_LOSSES

    def __init__(
        self,
        schedule: Any = None,
        *,
        ratio: float = 2e-4,
        lower: float = 1.0,
        upper: float = 5.0,
        seed: int = 0,
    ) -> None:
        super().__init__(schedule)
        self.ratio = checked(self, "ratio", ratio, 0, 1)
        self.lower = checked(self, "lower", lower)
        self.upper = checked(self, "upper", upper, above=lower)
        self.seed = int(seed)
        self._draws = 0

    @property
    def trainer_options(self) -> dict[str, Any]:
        return {"epsilon": 1.0, "epsilon_high": 1.0, "delta": 10.0}

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        covariance = token_covariance(tokens)
        covariance[~tokens.mask | tokens.clipped(1.0, 1.0)] = -math.inf
        candidates = ((covariance > self.lower) & (covariance < self.upper)).nonzero()
        count = max(int(self.ratio * int(tokens.mask.sum())), 1)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self._draws) % 2**63)
        self._draws += 1
        order = torch.randperm(len(candidates), generator=generator)
        drawn = candidates[order[:count].to(candidates.device)]
        advantages = tokens.token_advantages
        advantages[drawn[:, 0], drawn[:, 1]] = 0.0
        return advantages

    def memory(self) -> dict[str, Any]:
        return {"draws": self._draws}

    def recall(self, memory: dict[str, Any]) -> None:
        self._draws = int(memory["draws"])
