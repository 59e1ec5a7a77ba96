"""Feedback: measured entropy and target in, one signed pressure out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from entrocraft.feedback.deadband import Deadband
from entrocraft.feedback.planner import Planner
from entrocraft.feedback.situation import Pressure, Situation
from entrocraft.feedback.target import Target, TargetError

__all__ = [
    "Deadband",
    "FeedbackSettings",
    "Planner",
    "Pressure",
    "Situation",
    "Target",
    "TargetError",
]

_SLOWER, _FASTER, _LEAST_FACTOR = 0.8, 1.05, 0.02


@dataclass(frozen=True)
class FeedbackSettings:
    """How target and measurement become pressure.

    Args:
        horizon: for the rule tilt: optimizer steps ahead at which the entropy is to be on the
            schedule.
        limit: for the rule tilt: largest pressure.
        band: for the rules sign and switch: half-width around the target, or (low, high) offsets
            from it, nats per token.
        learning_rate: for the rule tilt: whether the learning rate is lowered while the entropy is
            below its target and rejection is at its limit, by a fifth a batch, and raised again
            afterwards.

    Raises:
        ValueError: a value out of range; the message names it.
    """

    horizon: int = 4
    limit: float = 8.0
    band: float | tuple[float, float] = 0.05
    learning_rate: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.horizon, int) or self.horizon < 1:
            raise ValueError(f"horizon must be at least 1 optimizer step, got {self.horizon}")
        if not (math.isfinite(self.limit) and self.limit >= 1e-9):
            raise ValueError(f"limit must be finite and at least 1e-09, got {self.limit}")
        Deadband(self.band)
        if not isinstance(self.learning_rate, bool):
            raise ValueError(f"learning_rate must be true or false, got {self.learning_rate!r}")

    def build(self, deadband: bool) -> Planner | Deadband:
        """Make the loop: a `Deadband` for the band rules, else the `Planner`."""
        return Deadband(self.band) if deadband else Planner(self.horizon, self.limit)

    def learning_rate_factor(self, before: float, pressure: Pressure) -> float:
        """Factor on the learning rate for a batch under this pressure, after the one `before`."""
        if self.learning_rate and pressure.saturated and pressure.shortfall > 0:
            return max(_SLOWER * before, _LEAST_FACTOR)
        return min(_FASTER * before, 1.0)
