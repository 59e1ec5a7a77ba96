"""The planner: the pressure that brings the entropy onto the schedule a few steps ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from entrocraft.feedback.filter import EntropyFilter
from entrocraft.feedback.situation import Feedback, Pressure, Situation
from entrocraft.rollouts.step import StepInfo

__all__ = ["Planner"]


@dataclass(frozen=True)
class Planner(Feedback):
    """Feedback that plans on what a Kalman filter knows of the entropy; the default.

    With the filter's entropy H, pending change U and drift b, momentum m, and n the horizon (at
    least the steps of the batch), a batch that adds F nats in total, and batches like it after it,
    lead to ``H + (1 - m^n) U + n b + F sum_k (1 - m^k) / steps`` (k = 1 ... n). The planner solves
    this for F = target(n) and asks for the pressure under which the kept effects are expected to
    sum to F. Planned anew at every batch, one short horizon serves optimizers with and without
    momentum.

    Args:
        horizon: optimizer steps; shorter is quicker and follows more of the noise.
        limit: largest pressure.
    """

    horizon: int = 4
    limit: float = 8.0

    def start(self) -> EntropyFilter:
        """Return the state before the first batch."""
        return EntropyFilter()

    def wanted(self, state: EntropyFilter, situation: Situation) -> float:
        """F: nats per token that this batch shall add in total."""
        momentum, batch = situation.step.decay, situation.step.optimizer_steps
        steps = max(self.horizon, math.ceil(batch))
        arrives = sum(1 - momentum**k for k in range(1, steps + 1)) / max(batch, 1.0)
        lands = state.entropy + (1 - momentum**steps) * state.pending
        return (situation.target(steps) - lands - steps * state.drift) / arrives

    def choose(
        self, state: EntropyFilter, situation: Situation
    ) -> tuple[Pressure, EntropyFilter, dict[str, float]]:
        """Correct the filter by the measurement, and plan on it."""
        response = situation.response
        state = state.update(situation.measured, situation.stderr, response.size)
        metrics = {
            "entropy/estimate": state.entropy,
            "entropy/reachable_up": state.in_nats(response.at(self.limit)),
            "entropy/reachable_down": state.in_nats(response.at(-self.limit)),
        }
        if not 0 < response.size < math.inf:
            return Pressure(0.0), state, metrics
        wanted = self.wanted(state, situation)
        value, reached = response.solve(state.gains, wanted)
        saturated = abs(value) >= self.limit and reached != wanted
        return Pressure(value, saturated, wanted - reached if saturated else 0.0), state, metrics

    def applied(
        self, state: EntropyFilter, effects: tuple[float, float], spread: float, step: StepInfo
    ) -> tuple[EntropyFilter, dict[str, float]]:
        """Move the filter on over the batch's steps."""
        positive, negative = state.gains
        metrics = {
            "entropy/chosen_change": state.in_nats(effects),
            "entropy/predicted_change": state.predicted_change(effects, step),
            "entropy/drift": state.drift,
            "entropy/gain_positive": positive,
            "entropy/gain_negative": negative,
        }
        return state.predict(effects, spread, step), metrics

    def post_update(
        self, state: EntropyFilter, change: float, stderr: float, trained: bool
    ) -> EntropyFilter:
        """Correct the filter by the measured change."""
        return state.update_change(change, stderr, trained)

    def state_dict(self, state: EntropyFilter) -> dict[str, Any]:
        """Return a state, JSON-serializable."""
        return state.state_dict()

    def load_state(self, state: dict[str, Any]) -> EntropyFilter:
        """Make a state from what `state_dict` gave."""
        return EntropyFilter.from_state_dict(state)
