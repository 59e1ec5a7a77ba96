"""A clip range that is wider upwards."""

from __future__ import annotations

from typing import Any

from entrocraft.methods.base import PPO_LOSSES, Baseline, baseline, checked

__all__ = ["ClipHigher"]


@baseline("clip_higher")
class ClipHigher(Baseline):
    """``L = -mean_t min(r A, clip(r, 1 - low, 1 + high) A)`` with high above low.

    Source: DAPO (Yu et al., arXiv 2503.14476), low 0.2, high 0.28. Of DAPO this is the clip alone;
    its token mean is TRL's default, dynamic sampling and overlong punishment are left out. Done by
    TRL's `epsilon` and `epsilon_high`. Without several updates per batch nothing is ever clipped.

    Args:
        low: clip below 1 - low.
        high: clip above 1 + high.
    """

    coefficient = "high"
    losses = PPO_LOSSES
    needs_updates = True

    def __init__(self, schedule: Any = None, *, low: float = 0.2, high: float = 0.28) -> None:
        super().__init__(schedule)
        self.low = checked(self, "low", low, 0)
        self.high = checked(self, "high", high, 0)

    @property
    def trainer_options(self) -> dict[str, Any]:
        return {"epsilon": self.low, "epsilon_high": self.high}
