"""The planner: the pressure that brings the entropy onto the schedule a few steps ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass

from entrocraft.feedback.filter import EntropyFilter
from entrocraft.feedback.situation import Pressure, Situation

__all__ = ["Planner"]


@dataclass(frozen=True)
class Planner:
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
        """Return the memory before the first batch."""
        return EntropyFilter()

    def wanted(self, memory: EntropyFilter, situation: Situation) -> float:
        """F: nats per token that this batch shall add in total."""
        momentum, batch = situation.step.decay, situation.step.optimizer_steps
        steps = max(self.horizon, math.ceil(batch))
        arrives = sum(1 - momentum**k for k in range(1, steps + 1)) / batch
        lands = memory.entropy + (1 - momentum**steps) * memory.pending
        return (situation.target(steps) - lands - steps * memory.drift) / arrives

    def measure(
        self, memory: EntropyFilter, measured: float, stderr: float, size: float
    ) -> EntropyFilter:
        """Correct the filter by the measurement."""
        return memory.update(measured, stderr, size)

    def plan(
        self, memory: EntropyFilter, situation: Situation
    ) -> tuple[Pressure, dict[str, float]]:
        """Ask for what brings the entropy onto the schedule."""
        response = situation.response
        down, up = response.ends
        metrics = {
            "entropy/estimate": memory.entropy,
            "entropy/reachable_up": memory.in_nats(up),
            "entropy/reachable_down": memory.in_nats(down),
        }
        if not 0 < response.size < math.inf:
            return Pressure(0.0), metrics
        wanted = self.wanted(memory, situation)
        value, reached = response.solve(memory.gains, wanted)
        saturated = abs(value) >= self.limit and reached != wanted
        return Pressure(value, saturated, wanted - reached if saturated else 0.0), metrics
