"""Controller state: what is remembered from batch to batch, and its JSON form."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from entrocraft.effects import BatchMeans
from entrocraft.feedback.filter import EntropyFilter, finite
from entrocraft.feedback.saturation import SaturationMonitor
from entrocraft.selection.response import SHAPE, ResponseCurve
from entrocraft.storage import read_number

__all__ = ["ControllerState", "LastBatch"]

_LEAST = math.ulp(0.0)  # above 0
_LEAST_ENTROPY = -0.01  # a mean may be a rounding error below 0


@dataclass(frozen=True)
class LastBatch:
    """The previous batch: stands in for one that is not scored yet.

    Attributes:
        measured: entropy, nats per token.
        curve: response of its rollouts.
        means: token means that effects refer to.
    """

    measured: float
    curve: ResponseCurve
    means: BatchMeans


@dataclass(frozen=True)
class ControllerState:
    """All that a controller remembers; never changed in place.

    Attributes:
        decisions: batches decided on; the draw depends on it.
        initial: first measured entropy, nats per token; None before the first batch.
        scale: slow average of the effects' mean size.
        feedback: memory of the feedback: an `EntropyFilter`, or None if it has none.
        monitor: what the saturation monitor has seen and said.
        learning_rate_factor: of the latest decision.
        beyond: batches in a row beyond the guard's bounds.
        last: the latest batch; None where each batch is scored before it is decided on.
    """

    decisions: int = 0
    initial: float | None = None
    scale: float = 0.0
    feedback: Any = None
    monitor: SaturationMonitor = field(default_factory=SaturationMonitor)
    learning_rate_factor: float = 1.0
    beyond: int = 0
    last: LastBatch | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        last = self.last
        return {
            "decisions": self.decisions,
            "initial": self.initial,
            "scale": self.scale,
            "feedback": {} if self.feedback is None else self.feedback.state_dict(),
            "monitor": {**asdict(self.monitor), "warned": list(self.monitor.warned)},
            "learning_rate_factor": self.learning_rate_factor,
            "beyond": self.beyond,
            "last": last
            and {
                "measured": last.measured,
                "size": last.curve.size,
                "limit": last.curve.limit,
                "sums": last.curve.sums.tolist(),
                "means": asdict(last.means),
            },
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any], remembers: bool, limit: float) -> ControllerState:
        """Make it from what `as_dict` gave.

        Args:
            state: as JSON gives it, of the present version or of 0.1.0's.
            remembers: whether the feedback has a memory.
            limit: largest pressure; a last batch whose response is for another one is forgotten.

        Raises:
            ValueError, KeyError, TypeError: a number that is missing or makes no sense.
        """
        if state["version"] == 2:
            state = _of_version_2(state)
        monitor, last = state["monitor"], state.get("last")
        initial = None
        if state["initial"] is not None:
            initial = read_number(state, "initial", low=_LEAST_ENTROPY)
        later = {"learning_rate_factor": 1.0, "beyond": 0, **state}  # keys that 0.1.0 did not have
        if not isinstance(monitor["warned"], (list, tuple)):
            raise ValueError(f"warned is {monitor['warned']!r}"[:80] + ", not a list")
        if last is not None:
            curve = ResponseCurve(
                finite(last["sums"], SHAPE),
                read_number(last, "size", low=0),
                read_number(last, "limit", low=0),
            )
            means, least = last["means"], {"tokens": _LEAST, "weight": _LEAST}
            numbers = {name: read_number(means, name, low=least.get(name, -1e9)) for name in means}
            measured = read_number(last, "measured", low=_LEAST_ENTROPY)
            last = LastBatch(measured, curve, BatchMeans(**numbers))
            last = last if curve.limit == limit else None
        return cls(
            read_number(state, "decisions", int, low=0),
            initial,
            read_number(state, "scale", low=0),
            EntropyFilter.from_state_dict(state["feedback"]) if remembers else None,
            SaturationMonitor(
                read_number(monitor, "saturated_in_a_row", int),
                read_number(monitor, "gap"),
                tuple(map(str, monitor["warned"])),
            ),
            read_number(later, "learning_rate_factor", low=_LEAST, high=1),
            read_number(later, "beyond", int, low=0),
            last,
        )


def _of_version_2(state: dict[str, Any]) -> dict[str, Any]:
    """Read the state that entrocraft 0.1.0 wrote."""
    monitor = {"gap": 0.0} | {key: state[key] for key in ("saturated_in_a_row", "warned")}
    renamed = {
        "initial": state["goal"]["initial"],
        "feedback": {"variance": None} | state["observer"],
    }
    return {**state, **renamed, "monitor": monitor}
