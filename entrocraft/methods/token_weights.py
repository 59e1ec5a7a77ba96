"""Token weights: methods that set one advantage per token, and the losses that fit them."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from entrocraft.method import Method
from entrocraft.rollouts import TokenBatch

__all__ = ["PPO_LOSSES", "RATIO_LOSSES", "UNCLIPPED", "TokenMethod", "drop_tokens", "ppo_clip"]

UNCLIPPED: Mapping[str, Any] = {
    "epsilon": 1e9,
    "epsilon_high": 1e9,
    "importance_sampling_level": "token",
}
"""Trainer options that leave clipping to the method: no ratio reaches such a bound."""

PPO_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""TRL's loss types with PPO's clip: to 1 - epsilon and 1 + epsilon_high, and at delta above."""

RATIO_LOSSES = (*PPO_LOSSES, "cispo")
"""TRL's loss types that multiply a token's gradient by its importance ratio up to some bound.

In "cispo" that bound is epsilon_high itself; "sapo" and "vespo" read none of the clip's options and
have functions of the ratio of their own.
"""


class TokenMethod(Method):
    """A method that gives each token an advantage of its own; subclasses have `reweigh`."""

    token_scope: ClassVar[str | None] = "update"
    losses: ClassVar[tuple[str, ...] | None] = RATIO_LOSSES


def ppo_clip(low: float, high: float, dual: float) -> Mapping[str, Any]:
    """Trainer options of PPO's clip to [1 - low, 1 + high], and to `dual` where A < 0."""
    return {"epsilon": low, "epsilon_high": high, "delta": dual}


def drop_tokens(tokens: TokenBatch, keep: Tensor) -> Tensor:
    """(b, T) advantages as if the response tokens outside `keep` had left the loss's token mean."""
    left = tokens.mean(keep.float())
    return torch.where(keep, tokens.token_advantages / max(left, 1e-12), 0.0)
