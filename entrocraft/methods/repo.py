"""REPO-R: scales each token's advantage by its log-probability, as much as the entropy asks for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from entrocraft.method import Measurement, number
from entrocraft.methods.token_weights import PPO_LOSSES, TokenMethod
from entrocraft.rollouts import TokenBatch

__all__ = ["REPO"]


@dataclass(eq=False)
class REPO(TokenMethod):
    """Rare tokens gain with A > 0 and lose less with A < 0, for a positive z; with p detached::

        A > 0:  max(A (1 - z log p), 0)        A < 0:  min(A (1 + z log p), 0)

    Once per batch z doubles (to +-`most` at most) if it pushes entropy toward the target, else
    halves; where it would fall below `least` its sign turns.

    Source: REPO (arXiv 2603.11682, appendix D.2), where the target is the initial entropy; the rule
    is that of SkyRL's pull request 1896. Underneath is PPO's clip.

    Args:
        zeta: z of the first batch.
        least: smallest size of z.
        most: largest size of z.
    """

    name = "repo_r"
    follows = True
    own_target = "constant(initial)"
    coefficient = "zeta"
    losses = PPO_LOSSES
    memory = ("zeta_now",)
    _zeta_now = 0.0

    zeta: float = number(0.01)
    least: float = number(1e-4, above=0)
    most: float = number(1.0, low="least")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.least <= abs(self.zeta) <= self.most:
            raise ValueError(
                f"repo_r: zeta is {self.zeta}; use a size from {self.least} to {self.most}"
            )

    def settings(self, seen: Measurement) -> dict[str, float]:
        if self._zeta_now == 0:
            self._zeta_now = self.zeta
            return {}
        wanted = 1.0 if seen.error < 0 else -1.0
        size = abs(self._zeta_now)
        if self._zeta_now * wanted > 0:
            self._zeta_now = wanted * min(2 * size, self.most)
        elif size / 2 >= self.least:
            self._zeta_now /= 2
        else:
            self._zeta_now = wanted * self.least
        return {}

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        advantages = tokens.token_advantages
        scaled = advantages * (1 - advantages.sign() * self._zeta_now * tokens.logprobs)
        kept = torch.where(advantages > 0, scaled.clamp(min=0), scaled.clamp(max=0))
        return torch.where(tokens.mask, kept, 0.0)

    def report(self) -> dict[str, float]:
        return {"entropy/zeta": self._zeta_now}
