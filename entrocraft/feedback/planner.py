"""From target and measured entropy to one signed pressure.

Positive pressure wants more entropy, zero is plain RL. `Planner` plans on what the observer
believes and is the default; `ProportionalIntegral` looks at the error alone; `Deadband` is for the
band rules of the paper and its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from entrocraft.feedback.filter import EntropyFilter

__all__ = [
    "FEEDBACKS",
    "Band",
    "Deadband",
    "Feedback",
    "Planner",
    "ProportionalIntegral",
    "Situation",
    "get_feedback",
]

_BISECTIONS = 40


@dataclass(frozen=True)
class Situation:
    """What a loop may look at before it chooses the pressure of a batch.

    Attributes:
        measured: entropy of the batch, nats per token.
        target: optimizer steps ahead -> target entropy, nats per token.
        steps: optimizer steps that the batch is used for.
        momentum: decay per step of what is under way in the optimizer.
        observer: has taken the measurement already.
        reach: pressure -> expected stats of the kept effects (of positive, of negative advantages)
            over all steps of the batch.
    """

    measured: float
    target: Callable[[int], float]
    steps: float
    momentum: float
    observer: EntropyFilter
    reach: Callable[[float], tuple[float, float]]


class Feedback(Protocol):
    """A loop from entropies (nats per token) to pressure."""

    @property
    def limit(self) -> float:
        """Largest pressure."""
        ...

    @property
    def saturated(self) -> bool:
        """Whether the last pressure was all that the loop can ask for."""
        ...

    @property
    def shortfall(self) -> float:
        """Signed nats per token that the last plan wanted beyond reach; 0 unless saturated."""
        ...

    def pressure(self, situation: Situation) -> float:
        """Take one measurement, return the pressure for this batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the loop's memory, JSON-serializable."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...


class Planner:
    """The pressure that brings the believed entropy onto the schedule `horizon` steps ahead.

    With the observer's entropy H, pipeline U and drift b, momentum m, and n the horizon (at least
    the steps of the batch), a batch that adds F nats in total, and batches like it after it, lead
    to ``H + (1 - m^n) U + n b + F sum_k (1 - m^k) / steps`` (k = 1 ... n). The loop solves this for
    F = target(n) and asks for the pressure under which the kept effects are expected to sum to F.
    Planned anew at every batch, one short horizon serves optimizers with and without momentum.

    Args:
        horizon: optimizer steps; shorter is quicker and follows more of the noise.
        limit: largest pressure.
    """

    def __init__(self, horizon: int = 4, limit: float = 8.0) -> None:
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 optimizer step, got {horizon}")
        self.horizon = int(horizon)
        self.limit = _checked_limit(limit)
        self._saturated = False
        self._shortfall = 0.0

    def __repr__(self) -> str:
        return f"Planner({self.horizon}, limit={self.limit:g})"

    @property
    def saturated(self) -> bool:
        """Whether the wanted change was out of reach."""
        return self._saturated

    @property
    def shortfall(self) -> float:
        """Wanted less reachable change of one batch, nats per token."""
        return self._shortfall

    def wanted(self, situation: Situation) -> float:
        """F: nats that this batch shall add in total."""
        observer, momentum = situation.observer, situation.momentum
        steps = max(self.horizon, math.ceil(situation.steps))
        arrives = sum(1 - momentum**k for k in range(1, steps + 1)) / max(situation.steps, 1.0)
        lands = observer.entropy + (1 - momentum**steps) * observer.pending
        return (situation.target(steps) - lands - steps * observer.drift) / arrives

    def pressure(self, situation: Situation) -> float:
        """Invert the reach; it grows with the pressure."""
        wanted = self.wanted(situation)

        def added(pressure: float) -> float:
            return situation.observer.in_nats(situation.reach(pressure))

        plain = added(0.0)
        self._saturated, self._shortfall = False, 0.0
        if wanted == plain:
            return 0.0
        sign = 1.0 if wanted > plain else -1.0
        most = added(sign * self.limit)
        if sign * most <= sign * wanted:
            self._saturated, self._shortfall = True, wanted - most
            return sign * self.limit
        low, high = 0.0, self.limit
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            if sign * added(sign * middle) >= sign * wanted:
                high = middle
            else:
                low = middle
        return sign * high

    def state_dict(self) -> dict[str, Any]:
        """Only what is reported: all memory is the observer's."""
        return {"saturated": self._saturated, "shortfall": self._shortfall}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._saturated, self._shortfall = bool(state["saturated"]), float(state["shortfall"])


class ProportionalIntegral:
    """PI control of the relative entropy error, with filter, lead and anti-windup.

    With H the measured entropy, H_f its exponential filter, and H_0 the larger of the first
    measurement and the present target::

        I += integral_gain * steps * (target(step) - H) / H_0
        e = (target(step + lead) - H_f) / H_0
        pressure = clip(proportional_gain * e + I, -limit, limit)

    I is frozen while the pressure is at its limit and the error pushes on. It looks at the present
    step, so that neither lead nor filter leaves an offset on a ramp. Dividing by H_0 makes the
    gains pure numbers: they mean the same for a policy of 0.3 and of 3 nats.

    Args:
        proportional_gain: pressure for a relative error of 1.
        integral_gain: pressure added per optimizer step for a relative error of 1.
        smoothing: weight of the past in H_f, in [0, 1).
        lead: optimizer steps ahead of the end of the batch's own steps at which the target is read;
            makes up for the lag of the optimizer's momentum.
        limit: largest pressure.
    """

    def __init__(
        self,
        proportional_gain: float = 40.0,
        integral_gain: float = 1.0,
        smoothing: float = 0.5,
        lead: int = 2,
        limit: float = 8.0,
    ) -> None:
        for name, value, low in (
            ("proportional_gain", proportional_gain, 0.0),
            ("integral_gain", integral_gain, 0.0),
            ("smoothing", smoothing, 0.0),
            ("lead", lead, 0),
        ):
            if not (math.isfinite(value) and value >= low):
                raise ValueError(f"{name} must be finite and at least {low:g}, got {value}")
        if smoothing >= 1:
            raise ValueError(
                f"smoothing must be below 1, got {smoothing}; 0 uses the raw measurement"
            )
        self.proportional_gain = proportional_gain
        self.integral_gain = integral_gain
        self.smoothing = smoothing
        self.limit = _checked_limit(limit)
        self._lead = int(lead)
        self._first: float | None = None
        self._estimate: float | None = None
        self._integral = 0.0
        self._pressure = 0.0

    def __repr__(self) -> str:
        return (
            f"ProportionalIntegral({self.proportional_gain:g}, {self.integral_gain:g}, "
            f"smoothing={self.smoothing:g}, lead={self._lead}, limit={self.limit:g})"
        )

    @property
    def saturated(self) -> bool:
        """Whether the last pressure sat at its limit."""
        return abs(self._pressure) >= self.limit

    @property
    def shortfall(self) -> float:
        """0: the loop knows errors, not what would be needed to remove them."""
        return 0.0

    def pressure(self, situation: Situation) -> float:
        """Filter the measurement, integrate the error, return the pressure."""
        entropy, steps = situation.measured, situation.steps
        target = situation.target(0)
        target_ahead = situation.target(math.ceil(steps) + self._lead)
        if self._first is None or self._estimate is None:
            self._first = max(entropy, 1e-6)
            self._estimate = entropy
        else:
            self._estimate = self.smoothing * self._estimate + (1 - self.smoothing) * entropy
        reference = max(self._first, target)
        error = (target_ahead - self._estimate) / reference
        # the integral looks at this very step: lead and filter lag would be an offset on a ramp
        present = (target - entropy) / reference
        integral = self._integral + self.integral_gain * steps * present
        wanted = self.proportional_gain * error + integral
        if abs(wanted) < self.limit or wanted * present < 0:
            self._integral = max(-self.limit, min(self.limit, integral))
        self._pressure = max(-self.limit, min(self.limit, wanted))
        return self._pressure

    def state_dict(self) -> dict[str, Any]:
        """First measurement, filter, integral and last pressure."""
        return {
            "first": self._first,
            "estimate": self._estimate,
            "integral": self._integral,
            "pressure": self._pressure,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._first, self._estimate = state["first"], state["estimate"]
        self._integral, self._pressure = float(state["integral"]), float(state["pressure"])


@dataclass(frozen=True)
class Band:
    """Offsets from the target in nats per token; between target + low and + high a relay rests."""

    low: float
    high: float

    @classmethod
    def of(cls, band: float | tuple[float, float] | list[float]) -> Band:
        """Read a half-width, or a (low, high) pair of offsets.

        Raises:
            ValueError: not finite, or the lower bound above the upper bound.
        """
        if isinstance(band, (int, float)) and not isinstance(band, bool):
            if not (math.isfinite(band) and band >= 0):
                raise ValueError(f"band must be a half-width of at least 0 nats, got {band}")
            return cls(-float(band), float(band))
        if not isinstance(band, (tuple, list)) or len(band) != 2:
            raise ValueError(f"band must be a half-width or a (low, high) pair, got {band!r}")
        low, high = (float(edge) for edge in band)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"band edges must be finite, got ({low}, {high})")
        if low > high:
            raise ValueError(
                f"the band's lower bound {low:g} is above its upper bound {high:g}; give (low, "
                "high) as offsets from the target, e.g. (-0.05, 0.05)"
            )
        return cls(low, high)


class Deadband:
    """The band of the paper: pressure -1 above it, +1 below it, 0 inside, on raw measurements."""

    limit = 1.0

    def __init__(self, band: float | tuple[float, float] = 0.05) -> None:
        self.band = Band.of(band)
        self._pressure = 0.0

    def __repr__(self) -> str:
        return f"Deadband(({self.band.low:g}, {self.band.high:g}))"

    @property
    def saturated(self) -> bool:
        """True outside the band: a relay always uses all its authority."""
        return self._pressure != 0

    @property
    def shortfall(self) -> float:
        """0: the relay does not plan."""
        return 0.0

    def pressure(self, situation: Situation) -> float:
        """Compare the measurement with the band's edges, at the batch's own step."""
        target = situation.target(0)
        above = situation.measured > target + self.band.high
        below = situation.measured < target + self.band.low
        self._pressure = float(below) - float(above)
        return self._pressure

    def state_dict(self) -> dict[str, Any]:
        """Last pressure."""
        return {"pressure": self._pressure}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._pressure = float(state["pressure"])


def _checked_limit(limit: float) -> float:
    if not (math.isfinite(limit) and limit >= 1e-9):
        raise ValueError(f"limit must be finite and at least 1e-09, got {limit}")
    return float(limit)


FEEDBACKS: dict[str, Callable[[], Feedback]] = {
    "plan": Planner,
    "pi": ProportionalIntegral,
}
"""Loops for graded pressure by name."""


def get_feedback(feedback: str | Feedback) -> Feedback:
    """Return a fresh loop of this name, or the loop itself.

    Raises:
        ValueError: an unknown name, or no loop at all; the message lists the known ones.
    """
    if not isinstance(feedback, str) and hasattr(feedback, "pressure"):
        return feedback
    if feedback not in FEEDBACKS:
        raise ValueError(f"unknown feedback {feedback!r}; choose one of {', '.join(FEEDBACKS)}")
    return FEEDBACKS[feedback]()
