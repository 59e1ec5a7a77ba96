"""A clip range that is tighter downwards."""

from __future__ import annotations

from typing import Any

from entrocraft.methods.base import baseline
from entrocraft.methods.clip_higher import ClipHigher

__all__ = ["ClipLow"]


@baseline("clip_low")
class ClipLow(ClipHigher):
    """PPO's clip with low below high: the lower clip raises entropy, the upper one lowers it.

    Source: the clip-low / clip-high study (arXiv 2509.26114), which advises to tighten the lower
    clip. Its values could not be verified: the default, half of PPO's 0.2, is ours. Done by TRL's
    `epsilon` and `epsilon_high`. Without several updates per batch nothing is ever clipped.

    Args:
        low: clip below 1 - low.
        high: clip above 1 + high.
    """

    coefficient = "low"

    def __init__(self, schedule: Any = None, *, low: float = 0.1, high: float = 0.2) -> None:
        super().__init__(schedule, low=low, high=high)
