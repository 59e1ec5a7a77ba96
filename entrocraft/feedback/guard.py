"""Guard: bounds of the entropy beyond which a run stops or its updates pause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from entrocraft import schedules

__all__ = ["Guard"]


@dataclass(frozen=True)
class Guard:
    """Bounds of the measured entropy, for runs with and without a schedule.

    Args:
        low, high: nats per token, numbers or relative to the run's start ("0.2*initial"); None: no
            such bound.
        action: "stop" ends the run, "pause" leaves out the update of each batch beyond a bound.
        batches: beyond a bound in a row before anything is done.

    Raises:
        ValueError: a value that makes no sense; the message names it.
    """

    low: float | str | None = None
    high: float | str | None = None
    action: Literal["stop", "pause"] = "stop"
    batches: int = 3

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            if bound is not None:
                schedules.constant(bound)
        if self.low is None and self.high is None:
            raise ValueError("a guard needs a bound: low, high or both")
        if self.action not in ("stop", "pause"):
            raise ValueError(f"guard.action must be 'stop' or 'pause', got {self.action!r}")
        if not isinstance(self.batches, int) or self.batches < 1:
            raise ValueError(f"guard.batches must be at least 1, got {self.batches!r}")

    def check(self, measured: float, initial: float, beyond: int) -> tuple[int, str | None]:
        """Look at one batch.

        Args:
            measured: its entropy, nats per token.
            initial: the run's first.
            beyond: batches in a row that were beyond a bound before it.

        Returns:
            The same with this batch, and what there is to say if that is too many.
        """
        if (found := self._crossed(measured, initial)) is None:
            return 0, None
        if beyond + 1 < self.batches:
            return beyond + 1, None
        done = "stops the run" if self.action == "stop" else "leaves out its update"
        return beyond + 1, f"{found}, for {beyond + 1} batches in a row; the guard {done}"

    def _crossed(self, measured: float, initial: float) -> str | None:
        for bound, side in ((self.low, "below"), (self.high, "above")):
            if bound is None:
                continue
            edge = schedules.anchor(schedules.constant(bound), max(initial, 0.0))(0)
            if (measured < edge) if side == "below" else (measured > edge):
                return f"entropy is {measured:.4g} nats per token, {side} the bound {edge:.4g}"
        return None
