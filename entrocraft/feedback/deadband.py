"""Deadband control: full pressure outside a band around the target, none inside (bang-bang)."""

from __future__ import annotations

import math
import sys

from entrocraft.feedback.situation import Pressure, Situation

__all__ = ["Deadband"]


class Deadband:
    """The band of the Entrocraft paper (arXiv 2604.26326): pressure -1 above it, +1 below it.

    It looks at the batch's own measurement and step, and has no memory of earlier ones.

    Args:
        band: half-width around the target, or (low, high) offsets from it, nats per token.

    Raises:
        ValueError: not finite, a negative width, or the lower bound above the upper bound.
    """

    limit = 1.0

    def __init__(self, band: float | tuple[float, float] | list[float]) -> None:
        if isinstance(band, (int, float)) and not isinstance(band, bool):
            if not 0 <= band <= sys.float_info.max:
                raise ValueError(f"band must be a half-width of at least 0 nats, got {band}")
            band = (-band, band)
        if not isinstance(band, (tuple, list)) or len(band) != 2:
            raise ValueError(f"band must be a half-width or a (low, high) pair, got {band!r}")
        self.low, self.high = (float(edge) for edge in band)
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"band edges must be finite, got ({self.low}, {self.high})")
        if self.low > self.high:
            raise ValueError(
                f"the band's lower bound {self.low:g} is above its upper bound {self.high:g}; give "
                "(low, high) as offsets from the target, e.g. (-0.05, 0.05)"
            )

    def start(self) -> None:
        """Return the memory before the first batch: none."""

    def measure(self, memory: None, measured: float, stderr: float, size: float) -> None:
        """Return the memory after a measurement: none."""

    def plan(self, memory: None, situation: Situation) -> tuple[Pressure, dict[str, float]]:
        """Compare the measurement with the band's edges."""
        target = situation.target(0)
        low, high = target + self.low, target + self.high
        value = float(situation.measured < low) - float(situation.measured > high)
        value *= 0 < situation.response.size < math.inf
        pressure = Pressure(value, saturated=value != 0)
        return pressure, {"entropy/low": low, "entropy/high": high}
