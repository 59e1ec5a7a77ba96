"""Importance ratios of whole sequences."""

from __future__ import annotations

from typing import Any

from entrocraft.methods.base import Baseline, baseline, checked

__all__ = ["GSPO"]


@baseline("gspo")
class GSPO(Baseline):
    """``s = exp(mean_t log r_t)`` in place of the token ratio, clipped to [1 - low, 1 + high].

    Source: Zheng et al., GSPO (arXiv 2507.18071), low 3e-4, high 4e-4, mean over sequences of token
    means, four updates per batch. Done by TRL's `importance_sampling_level="sequence"`,
    `loss_type="grpo"` and its clip. The runs called GSPO in the Entrocraft paper clip at 0.2, which
    sequence ratios hardly reach: those are GSPO without a clip.

    Args:
        low: clip below 1 - low.
        high: clip above 1 + high.
    """

    losses = ("grpo",)
    needs_updates = True

    def __init__(self, schedule: Any = None, *, low: float = 3e-4, high: float = 4e-4) -> None:
        super().__init__(schedule)
        self.low = checked(self, "low", low, 0)
        self.high = checked(self, "high", high, 0)

    @property
    def trainer_options(self) -> dict[str, Any]:
        return {
            "importance_sampling_level": "sequence",
            "loss_type": "grpo",
            "epsilon": self.low,
            "epsilon_high": self.high,
        }
