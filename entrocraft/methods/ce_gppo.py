"""CE-GPPO: a bounded gradient for the tokens that PPO's clip would stop."""

from dataclasses import dataclass

import torch
from torch import Tensor

from entrocraft.method import number
from entrocraft.methods.token_weights import UNCLIPPED, TokenMethod
from entrocraft.rollouts import TokenBatch

__all__ = ["CEGPPO"]


@dataclass(eq=False)
class CEGPPO(TokenMethod):
    """Clipped tokens keep a gradient of fixed size; with r the token's ratio::

        A < 0, r < 1 - low:    L = -beta1 (1 - low) / sg(r) r A
        A > 0, r > 1 + high:   L = -beta2 (1 + high) / sg(r) r A
        else:                  L = -r A, without gradient where A < 0 and r > dual

    Source: CE-GPPO (arXiv 2509.20712), Kwai-Klear: beta1 0.5 for 1.5B and 0.75 for 7B models,
    beta2 1, clip 0.2 both ways, dual clip 3.

    Args:
        beta1: weight of tokens of negative advantage below the clip.
        beta2: weight of tokens of positive advantage above the clip.
        low: clip below 1 - low.
        high: clip above 1 + high.
        dual: largest ratio at which a token of negative advantage trains.
    """

    name = "ce_gppo"
    coefficient = "beta1"
    needs_updates = True
    trainer_options = UNCLIPPED

    beta1: float = number(0.5, low=0)
    beta2: float = number(1.0, low=0)
    low: float = number(0.2, low=0, high=1)
    high: float = number(0.2, low=0)
    dual: float = number(3.0, above=1)

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        advantages, ratio = tokens.token_advantages, tokens.ratio
        below = (advantages < 0) & (ratio < 1 - self.low)
        above = (advantages > 0) & (ratio > 1 + self.high)
        stopped = (advantages < 0) & (ratio > self.dual)
        weight = torch.ones_like(ratio)
        weight = torch.where(below, self.beta1 * (1 - self.low) / ratio, weight)
        weight = torch.where(above, self.beta2 * (1 + self.high) / ratio, weight)
        return torch.where(stopped, 0.0, advantages * weight)
