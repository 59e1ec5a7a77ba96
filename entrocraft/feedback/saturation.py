"""Warnings of a controller that cannot do what was asked: each once in a run, not at every step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from entrocraft.method import EntropyControlWarning

__all__ = ["SaturationMonitor"]

_SATURATED_BEFORE_WARNING = 20


class SaturationMonitor:
    """Watches decisions: warns of rejection at its limit for long, and of updates without votes."""

    def __init__(self) -> None:
        self._saturated_in_a_row = 0
        self._warned: set[str] = set()

    def check(self, metrics: dict[str, float], useful: int, remedies: Sequence[str]) -> None:
        """Look at one decision.

        Args:
            metrics: of the decision; the keys of docs/metrics.md.
            useful: rollouts that carry a gradient in it.
            remedies: what a user can change where rejection is at its limit.
        """
        saturated = metrics["entropy/saturated"] > 0
        self._saturated_in_a_row = self._saturated_in_a_row + 1 if saturated else 0
        if self._saturated_in_a_row >= _SATURATED_BEFORE_WARNING:
            self._warn_once(
                "saturated",
                f"entropy control has been saturated for {self._saturated_in_a_row} batches: "
                f"target {metrics['entropy/target']:.3f}, measured "
                f"{metrics['entropy/measured']:.3f} nats per token, keeping "
                f"{metrics['entropy/kept_fraction']:.0%} of the rollouts. The schedule asks for "
                f"more than rejection can do: {', '.join(remedies[:-1])} or {remedies[-1]}",
            )
        if useful == 0:
            self._warn_once(
                "empty",
                "no rollout with a non-zero advantage is left in a batch (logged as "
                "entropy/empty); its update carries no policy gradient, the optimizer still moves "
                "by momentum and weight decay",
            )

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            # _warn_once, check, the controller's _decide and decide: then who called it
            warnings.warn(message, EntropyControlWarning, stacklevel=5)

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen and said, JSON-serializable."""
        return {
            "saturated_in_a_row": self._saturated_in_a_row,
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._saturated_in_a_row = int(state["saturated_in_a_row"])
        self._warned = set(state["warned"])
