"""Guard: bounds of the entropy beyond which a run stops or its updates pause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from entrocraft import schedules
from entrocraft.typed import check_types

__all__ = ["Guard", "GuardResult"]

_PAUSED_FOR_GOOD = 10  # times `batches`


@dataclass(frozen=True)
class GuardResult:
    """What the guard makes of one batch.

    Attributes:
        beyond: batches in a row beyond a bound, with this one.
        text: what there is to say.
        stop: whether the run is to end.
        pause: whether the batch's update is left out.
    """

    beyond: int
    text: str | None = None
    stop: bool = False
    pause: bool = False


@dataclass(frozen=True)
class Guard:
    """Bounds of the measured entropy, for runs with and without a schedule.

    Args:
        low, high: nats per token, numbers or relative to the run's start ("0.2*initial"); None: no
            such bound.
        action: "stop" ends the run. "pause" leaves out the updates of batches beyond a bound, but
            for those that are predicted to bring entropy back, and ends the run if it stays there
            for ten times `batches`: a policy that is not updated does not come back.
        batches: beyond a bound in a row before anything is done.

    Raises:
        ValueError: a value that makes no sense; the message names it.
    """

    low: float | str | None = None
    high: float | str | None = None
    action: Literal["stop", "pause"] = "stop"
    batches: int = 3

    def __post_init__(self) -> None:
        check_types(self, "guard.")
        for bound in (self.low, self.high):
            if bound is not None:
                schedules.constant(bound)
        if self.low is None and self.high is None:
            raise ValueError("a guard needs a bound: low, high or both")
        if self.batches < 1:
            raise ValueError(f"guard.batches must be at least 1, got {self.batches!r}")
        low, high = self.low, self.high
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
            raise ValueError(f"guard.low is {low} and guard.high {high}; no entropy is within")

    def check(
        self, measured: float, initial: float, beyond: int, change: float = 0.0
    ) -> GuardResult:
        """Look at one batch.

        Args:
            measured: its entropy, nats per token.
            initial: the run's first.
            beyond: batches in a row that were beyond a bound before it.
            change: predicted by its update; 0 if that is not known.
        """
        if (crossed := self._crossed(measured, initial)) is None:
            return GuardResult(0)
        side, edge = crossed
        count = beyond + 1
        if count < self.batches:
            return GuardResult(count)
        where = "below" if side < 0 else "above"
        text = (
            f"entropy is {measured:.4g} nats per token, {where} the bound {edge:.4g}, for {count} "
            "batches in a row; the guard "
        )
        if self.action == "stop" or count >= _PAUSED_FOR_GOOD * self.batches:
            return GuardResult(count, text + "stops the run", stop=True)
        if change * side < 0:
            return GuardResult(count)
        return GuardResult(count, text + "leaves out its update", pause=True)

    def _crossed(self, measured: float, initial: float) -> tuple[int, float] | None:
        """Side (-1 below, 1 above) and value of the bound that is crossed."""
        for bound, side in ((self.low, -1), (self.high, 1)):
            if bound is None:
                continue
            edge = schedules.anchor(schedules.constant(bound), max(initial, 0.0))(0)
            if (measured - edge) * side > 0:
                return side, edge
        return None
