"""The saturation monitor: says when rejection has been at its limit for long, and what helps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["SaturationMonitor"]

_BEFORE_WARNING, _BEFORE_SECOND = 10, 40  # optimizer steps at the limit in a row
_MISSED = 0.02  # of the target: a mean distance that is worth a warning


@dataclass(frozen=True)
class SaturationMonitor:
    """Watches decisions; each warning is given once in a run, `warned` has their topics.

    Attributes:
        saturated_in_a_row: optimizer steps at the limit until now; negative where entropy was to
            fall.
        gap: mean of measured minus target over these steps, nats per token.
        warned: topics of the warnings given.
    """

    saturated_in_a_row: int = 0
    gap: float = 0.0
    warned: tuple[str, ...] = ()

    def check(
        self,
        metrics: dict[str, float],
        useful: int,
        remedies: Callable[[bool], Sequence[str]],
        steps: float = 1,
    ) -> tuple[SaturationMonitor, tuple[str, ...]]:
        """Look at one decision.

        Args:
            metrics: what it logs.
            useful: how many of its rollouts carry a gradient.
            remedies: whether the entropy is below its target -> what a user can change.
            steps: optimizer steps of the batch.

        Returns:
            The monitor after it, and the texts of new warnings.
        """
        found, row, gap = {}, 0, 0.0
        if metrics["entropy/saturated"] > 0:
            measured, target = metrics["entropy/measured"], metrics["entropy/target"]
            sign, new = (1 if metrics["entropy/pressure"] > 0 else -1), max(round(steps), 1)
            row = sign * new + max(self.saturated_in_a_row * sign, 0) * sign
            share = new / abs(row)
            gap = (1 - share) * self.gap + share * (measured - target)
            below, missed = row > 0, -gap * sign > _MISSED * target
            side = "below" if below else "above"
            if abs(row) >= _BEFORE_WARNING and missed:
                *others, last = remedies(below)
                remedy = f"{', '.join(others)} or {last}" if others else last
                found["saturated"] = (
                    f"entropy has been {side} its schedule for {abs(row)} optimizer steps with "
                    f"rejection at its limit: target {target:.3f}, measured {measured:.3f} nats "
                    f"per token, keeping {metrics['entropy/kept_fraction']:.0%} of the rollouts. "
                    f"Rejection alone cannot do more: {remedy}"
                )
            if abs(row) >= _BEFORE_SECOND and missed:
                found["missed"] = (
                    f"the schedule is being missed: over the last {abs(row)} steps entropy was "
                    f"{abs(gap):.3f} nats per token {side} it on average; the target is now "
                    f"{target:.3f}"
                )
        if useful == 0:
            found["empty"] = (
                "no rollout with a non-zero advantage is left in a batch (logged as "
                "entropy/empty): the rollouts of each prompt had one reward, or were rejected. Its "
                "update carries no policy gradient, the optimizer still moves by momentum and "
                "weight decay. If it stays so, look at the reward, or at how hard the task is"
            )
        fresh = {topic: text for topic, text in found.items() if topic not in self.warned}
        warned = tuple(sorted({*self.warned, *fresh}))
        return SaturationMonitor(row, gap, warned), tuple(fresh.values())
