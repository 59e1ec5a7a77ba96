"""The target of a run: its schedule, anchored to the first measurement and checked."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from entrocraft import schedules

__all__ = ["Target", "TargetError"]


class TargetError(ValueError):
    """A schedule that asks for an entropy that no policy can have, or has no answer."""


class Target:
    """Target entropy by optimizer step, for a controller or any closed-loop method.

    >>> goal = Target("linear(initial, 0.5*initial, 100)")
    >>> goal.target(0) is None
    True
    >>> goal.anchor(0.8)
    >>> goal.target(50)
    0.6000000000000001

    Args:
        schedule: step -> nats per token: a callable, text for `schedules.from_string`, a number for
            a constant, or None for no target.

    Raises:
        ValueError: something else, or text that is no schedule.
    """

    def __init__(self, schedule: schedules.Schedule | str | float | None) -> None:
        if isinstance(schedule, Real) and not isinstance(schedule, bool):
            schedule = schedules.constant(float(schedule))
        elif isinstance(schedule, str):
            schedule = schedules.from_string(schedule)
        elif schedule is not None and not callable(schedule):
            raise ValueError(f"schedule must be a callable or text, got {schedule!r}")
        self.schedule = schedule
        self._initial: float | None = None
        self._max_entropy: float | None = None
        self._steps: int | None = None
        self._anchored = schedule if self._needs_no_anchor() else None

    def prepare(self, vocabulary: int | None = None, steps: int | None = None) -> None:
        """Check the schedule before any update; one relative to the start as soon as that is known.

        Args:
            vocabulary: number of tokens V; no target can be above log(V).
            steps: optimizer steps of the run; every target up to there is checked.

        Raises:
            TargetError: a target that is negative, not finite or above log(V).
        """
        if vocabulary is not None:
            if vocabulary < 1:
                raise ValueError(f"vocabulary must be at least 1 token, got {vocabulary}")
            self._max_entropy = math.log(vocabulary)
        self._steps = steps
        self._check()

    def anchor(self, measured: float) -> None:
        """Take the entropy of a batch, nats per token; only the first one of a run counts.

        Raises:
            TargetError: a target that is out of range, now that the start is known.
        """
        if self._initial is None:
            self._initial = measured
        if self._anchored is None and self.schedule is not None:
            # rounding may leave the entropy of a deterministic policy a hair below 0
            self._anchored = schedules.anchor(self.schedule, max(self._initial, 0.0))
            self._check()

    def target(self, step: int) -> float | None:
        """Target at an optimizer step, nats per token; None while it is not known.

        Raises:
            TargetError: a target that is negative, not finite or above log(V), or a schedule that
                fails.
        """
        if self._anchored is None:
            return None
        try:
            target = float(self._anchored(step))
        except Exception as error:
            raise TargetError(
                f"the schedule {self._anchored!r} has no number for step {step} "
                f"({type(error).__name__}: {error}); it is asked for every step of the run from 0 "
                "to the last, the state after the last one included"
            ) from error
        if not math.isfinite(target) or target < 0:
            raise TargetError(
                f"the schedule {self._anchored!r} asks for {target} nats per token at step {step}; "
                "a target must be finite and at least 0"
            )
        if self._max_entropy is not None and target > self._max_entropy:
            raise TargetError(
                f"the schedule {self._anchored!r} asks for {target:.4g} nats per token at step "
                f"{step}, above log(vocabulary) = {self._max_entropy:.4g}, which no policy can "
                "have; lower the target"
            )
        return target

    def ahead(self, step: int, steps: int) -> float | None:
        """Target `steps` after `step`, or at the run's end if that comes first."""
        # a plain function of the step need not make sense after the end
        last = step + steps if self._steps is None else max(self._steps, step)
        return self.target(min(step + steps, last))

    def state_dict(self) -> dict[str, Any]:
        """Return the first measurement, JSON-serializable."""
        return {"initial": self._initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._initial = state["initial"]
        self._anchored = self.schedule if self._needs_no_anchor() else None
        if self._initial is not None:
            self.anchor(self._initial)

    def _needs_no_anchor(self) -> bool:
        return self.schedule is None or schedules.is_anchored(self.schedule)

    def _check(self) -> None:
        for step in range((self._steps or 0) + 1):
            self.target(step)
