"""From target and measured entropy to one signed pressure.

Positive pressure wants more entropy, zero is plain RL. Two loops: `ProportionalIntegral` for rules
that answer to a graded pressure, `Relay` for the band rules of the paper and its code.
`GainTracker` watches the loop and translates predicted effects into nats.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Feedback", "GainTracker", "ProportionalIntegral", "Relay"]


class Feedback(Protocol):
    """A loop from entropies (nats per token) to pressure."""

    @property
    def estimate(self) -> float | None:
        """Present idea of the policy's entropy, nats per token; None before the first batch."""
        ...

    @property
    def saturated(self) -> bool:
        """Whether the last pressure was all that the loop can ask for."""
        ...

    def lead(self, steps: float) -> int:
        """How many optimiser steps ahead of a batch used for `steps` steps the target is read."""
        ...

    def update(self, entropy: float, target: float, target_ahead: float, steps: float) -> float:
        """Take one measurement, return the pressure for this batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the loop's memory, JSON-serialisable."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...


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
        integral_gain: pressure added per optimiser step for a relative error of 1.
        smoothing: weight of the past in H_f, in [0, 1).
        lead: optimiser steps ahead of the end of the batch's own steps at which the target is read;
            makes up for the lag of the optimiser's momentum.
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
            ("limit", limit, 1e-9),
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
        self.limit = limit
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
    def estimate(self) -> float | None:
        """Filtered entropy H_f, nats per token."""
        return self._estimate

    @property
    def saturated(self) -> bool:
        """Whether the last pressure sat at its limit."""
        return abs(self._pressure) >= self.limit

    def lead(self, steps: float) -> int:
        """Optimiser steps ahead at which the target is read."""
        return math.ceil(steps) + self._lead

    def update(self, entropy: float, target: float, target_ahead: float, steps: float) -> float:
        """Filter the measurement, integrate the error, return the pressure."""
        if self._estimate is None:
            self._first = max(entropy, 1e-6)
            self._estimate = entropy
        else:
            self._estimate = self.smoothing * self._estimate + (1 - self.smoothing) * entropy
        assert self._first is not None
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


class Relay:
    """The band of the paper: pressure -1 above it, +1 below it, 0 inside, on raw measurements."""

    def __init__(self, band: float | tuple[float, float] = 0.05) -> None:
        self.band = Band.of(band)
        self._estimate: float | None = None
        self._pressure = 0.0

    def __repr__(self) -> str:
        return f"Relay(({self.band.low:g}, {self.band.high:g}))"

    @property
    def estimate(self) -> float | None:
        """The last measurement, nats per token."""
        return self._estimate

    @property
    def saturated(self) -> bool:
        """True outside the band: a relay always uses all its authority."""
        return self._pressure != 0

    def lead(self, steps: float) -> int:
        """Return 0: the band is read at the batch's own step, as in the paper."""
        return 0

    def update(self, entropy: float, target: float, target_ahead: float, steps: float) -> float:
        """Compare the measurement with the band's edges."""
        self._estimate = entropy
        above, below = entropy > target + self.band.high, entropy < target + self.band.low
        self._pressure = float(below) - float(above)
        return self._pressure

    def state_dict(self) -> dict[str, Any]:
        """Last measurement and pressure."""
        return {"estimate": self._estimate, "pressure": self._pressure}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._estimate, self._pressure = state["estimate"], float(state["pressure"])


class GainTracker:
    """Nats really moved per nat predicted: one gain, by least squares over windows of decisions.

    Effects are predicted up to a gain that the optimiser and shared parameters set. The tracker
    compares, over the last `window` decisions, the sum of the predictions with the change of the
    measured entropy, and forgets with a rate of `memory`. It only translates predictions for the
    log; it never steers.
    """

    def __init__(self, window: int = 10, memory: float = 0.98) -> None:
        if window < 1 or not 0 <= memory <= 1:
            raise ValueError(
                f"window must be at least 1 and memory in [0, 1], got {window} and {memory}"
            )
        self.window = window
        self.memory = memory
        self._past: deque[tuple[float, float]] = deque(maxlen=window)
        self._compared = 0
        self._cross = 0.0
        self._square = 0.0

    @property
    def gain(self) -> float | None:
        """Nats per predicted nat.

        None until a whole window of comparisons was made, since a few are ruled by the noise of
        one measurement; and while the estimate is not positive.
        """
        if self._compared < self.window or self._square <= 0 or self._cross <= 0:
            return None
        gain = self._cross / self._square
        return gain if math.isfinite(gain) else None

    def observe(self, entropy: float) -> None:
        """Take the entropy measured before this decision."""
        if len(self._past) == self.window and math.isfinite(entropy):
            predicted = sum(change for _, change in self._past)
            realised = entropy - self._past[0][0]
            self._compared += 1
            self._cross = self.memory * self._cross + predicted * realised
            self._square = self.memory * self._square + predicted * predicted

    def predict(self, entropy: float, change: float) -> None:
        """Remember what this decision is predicted to do, in units of the effects."""
        if math.isfinite(entropy) and math.isfinite(change):
            self._past.append((entropy, change))

    def state_dict(self) -> dict[str, Any]:
        """The window and the two sums."""
        return {
            "past": [list(pair) for pair in self._past],
            "compared": self._compared,
            "cross": self._cross,
            "square": self._square,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._past = deque(((float(a), float(b)) for a, b in state["past"]), maxlen=self.window)
        self._compared = int(state["compared"])
        self._cross, self._square = float(state["cross"]), float(state["square"])
