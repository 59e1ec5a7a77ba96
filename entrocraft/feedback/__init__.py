"""Feedback: measured entropy and target in, one signed pressure out."""

from __future__ import annotations

from dataclasses import dataclass

from entrocraft.feedback.deadband import Deadband
from entrocraft.feedback.guard import Guard
from entrocraft.feedback.planner import Planner
from entrocraft.feedback.situation import Pressure, Situation
from entrocraft.feedback.target import Target, TargetError
from entrocraft.rollouts.step import MOST_STEPS
from entrocraft.typed import check_types

__all__ = [
    "Deadband",
    "FeedbackSettings",
    "Guard",
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
            below its target and rejection is at its limit, by a fifth a step, and raised again
            afterwards.

    Raises:
        ValueError: a value out of range; the message names it.
    """

    horizon: int = 4
    limit: float = 8.0
    band: float | tuple[float, float] = 0.05
    learning_rate: bool = False

    def __post_init__(self) -> None:
        Deadband(self.band)
        check_types(self, "feedback.")
        if not 1 <= self.horizon <= MOST_STEPS:
            raise ValueError(f"horizon is {self.horizon}; use 1 to {MOST_STEPS} optimizer steps")
        if not 1e-9 <= self.limit <= 1e9:
            raise ValueError(f"limit is {self.limit}; use a number from 1e-09 to 1e+09")

    def build(self, deadband: bool) -> Planner | Deadband:
        """Make the loop: a `Deadband` for the band rules, else the `Planner`."""
        return Deadband(self.band) if deadband else Planner(self.horizon, self.limit)

    def learning_rate_factor(self, before: float, pressure: Pressure, steps: float = 1) -> float:
        """Factor on the learning rate of a batch of these steps, after the one `before`."""
        if self.learning_rate and pressure.saturated and pressure.shortfall > 0:
            return max(_SLOWER**steps * before, _LEAST_FACTOR)
        return min(_FASTER**steps * before, 1.0)
