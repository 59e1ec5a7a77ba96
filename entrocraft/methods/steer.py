"""STEER: weighs tokens down by the entropy change that they are estimated to cause."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from entrocraft.method import number
from entrocraft.methods.token_weights import PPO_LOSSES, TokenMethod, ppo_clip
from entrocraft.rollouts import TokenBatch

__all__ = ["STEER"]

_EPSILON = 1e-8
_LEAST_RANGE = 0.02


@dataclass(eq=False)
class STEER(TokenMethod):
    """Each token's advantage times a weight that falls with its estimated entropy change.

    ``change = |A / p_old * p (1 - p) (log p + H)|`` (p clamped to [1e-8, 1 - 1e-8]); over the
    response tokens of a micro-batch,

    - linear: from `most` at the smallest change to `least` at the largest;
    - exponential: ``exp(-k change)``, ``k = -log(least) / max(largest change, 0.02)``, at least
      `least` and at most 1.

    Source: Rethinking Entropy Interventions in RLVR (arXiv 2510.10150); repository zz-haooo/STEER,
    whose clip (0.2 and 0.28, dual 10) is set here too.

    Args:
        mode: "linear" or "exponential".
        least: smallest weight.
        most: largest weight of the linear mode.
    """

    name = "steer"
    coefficient = "least"
    losses = PPO_LOSSES
    trainer_options = ppo_clip(low=0.2, high=0.28, dual=10.0)

    mode: str = field(default="linear", kw_only=True)
    least: float = number(0.8, above=0, high=1)
    most: float = number(1.2, low="least")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("linear", "exponential"):
            raise ValueError(f"steer: mode is {self.mode!r}; use 'linear' or 'exponential'")

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        advantages, mask = tokens.token_advantages, tokens.mask
        if not bool(mask.any()):
            return advantages
        p = tokens.logprobs.exp().clamp(_EPSILON, 1 - _EPSILON)
        change = advantages / tokens.old_logprobs.exp().clamp(min=_EPSILON)
        change = (change * p * (1 - p) * (p.log() + tokens.entropies)).abs()
        smallest, largest = change[mask].min(), change[mask].max()
        if self.mode == "linear":
            spread = (largest - smallest).clamp(min=_EPSILON)
            weight = self.most - (change - smallest) * (self.most - self.least) / spread
        else:
            rate = -math.log(self.least) / largest.clamp(min=_LEAST_RANGE)
            weight = (-rate * change).exp().clamp(self.least, 1.0)
        return torch.where(mask, advantages * weight, 0.0)
