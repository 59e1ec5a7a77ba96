"""DPPO: a trust region in the divergence of each token's probability, in place of its ratio."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from entrocraft.method import number
from entrocraft.methods.token_weights import UNCLIPPED, TokenMethod
from entrocraft.rollouts import TokenBatch

__all__ = ["DPPO"]

_EPSILON = 1e-8


@dataclass(eq=False)
class DPPO(TokenMethod):
    """``L = -sg(min(r, cap)) A log p``, for tokens whose divergence is within `bound` only.

    A token is left out if it moves the way that its advantage pushes and has already moved too far,
    by the divergence between (p, 1 - p) and (p_old, 1 - p_old): "tv", ``|p - p_old|``, or "kl".

    Source: Rethinking the trust region in LLM RL (arXiv 2602.04879); as verl's losses dppo_tv and
    dppo_kl. The bound is verl's `clip_ratio`.

    Args:
        divergence: "tv" or "kl".
        bound: largest divergence of a token that trains.
        cap: largest importance weight.
    """

    name = "dppo"
    coefficient = "bound"
    needs_updates = True
    trainer_options = UNCLIPPED

    divergence: str = field(default="tv", kw_only=True)
    bound: float = number(0.2, low=0)
    cap: float = number(20.0, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence not in ("tv", "kl"):
            raise ValueError(f"dppo: divergence is {self.divergence!r}; use 'tv' or 'kl'")

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        advantages, ratio = tokens.token_advantages, tokens.ratio
        p, old = tokens.logprobs.exp(), tokens.old_logprobs.exp()
        if self.divergence == "tv":
            distance = (p - old).abs()
        else:
            distance = old * (tokens.old_logprobs - tokens.logprobs) + (1 - old) * torch.log(
                (1 - old + _EPSILON) / (1 - p + _EPSILON)
            )
        beyond = (distance > self.bound) & torch.where(advantages > 0, p > old, p < old)
        weight = ratio.clamp(max=self.cap) / ratio
        return torch.where(tokens.mask & ~beyond, advantages * weight, 0.0)
