"""The saturation monitor: says when rejection has been at its limit for long, and what helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["SaturationMonitor"]

_SATURATED_BEFORE_WARNING = 20


@dataclass(frozen=True)
class SaturationMonitor:
    """Watches decisions; each warning is given once in a run, `warned` has their topics."""

    saturated_in_a_row: int = 0
    warned: tuple[str, ...] = ()

    def check(
        self, metrics: dict[str, float], useful: int, remedies: Sequence[str]
    ) -> tuple[SaturationMonitor, tuple[str, ...]]:
        """Look at one decision: its logged numbers, and how many of its rollouts carry a gradient.

        Returns:
            The monitor after it, and the texts of new warnings, which name the remedies.
        """
        in_a_row = self.saturated_in_a_row + 1 if metrics["entropy/saturated"] > 0 else 0
        found = {}
        if in_a_row >= _SATURATED_BEFORE_WARNING:
            found["saturated"] = (
                f"entropy control has been saturated for {in_a_row} batches: target "
                f"{metrics['entropy/target']:.3f}, measured {metrics['entropy/measured']:.3f} nats "
                f"per token, keeping {metrics['entropy/kept_fraction']:.0%} of the rollouts. The "
                "schedule asks for more than rejection can do: "
                f"{', '.join(remedies[:-1])} or {remedies[-1]}"
            )
        if useful == 0:
            found["empty"] = (
                "no rollout with a non-zero advantage is left in a batch (logged as "
                "entropy/empty); its update carries no policy gradient, the optimizer still moves "
                "by momentum and weight decay"
            )
        new = {topic: text for topic, text in found.items() if topic not in self.warned}
        warned = tuple(sorted({*self.warned, *new}))
        return SaturationMonitor(in_a_row, warned), tuple(new.values())
