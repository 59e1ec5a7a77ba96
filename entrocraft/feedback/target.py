"""The target of a run: its schedule, relative to the first measurement, and checked."""

from __future__ import annotations

import math
from numbers import Real

from entrocraft import schedules

__all__ = ["Target", "TargetError"]


class TargetError(ValueError):
    """A schedule that asks for an entropy that no policy can have, or has no answer."""


class Target:
    """Target entropy by optimizer step, for a controller or any closed-loop method.

    >>> target = Target("linear(initial, 0.5*initial, 100)")
    >>> target.at(50, initial=None) is None
    True
    >>> target.at(50, initial=0.8)
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
        self._max_entropy: float | None = None
        self._steps: int | None = None

    def prepare(
        self, vocabulary: int | None, steps: int | None, initial: float | None = None
    ) -> None:
        """Set the limits of a run and check the schedule, if `initial` or no start is needed.

        Args:
            vocabulary: number of tokens V; no target can be above log(V).
            steps: optimizer steps of the run; every target up to there is checked.
            initial: first measured entropy, nats per token; None if not yet measured.

        Raises:
            TargetError: a target that is negative, not finite or above log(V).
        """
        if vocabulary is not None:
            if not isinstance(vocabulary, int) or vocabulary < 1:
                raise ValueError(f"vocabulary must be at least 1 token, got {vocabulary}")
            self._max_entropy = math.log(vocabulary)
        self._steps = steps
        self.check(initial)

    def check(self, initial: float | None) -> None:
        """Check every target of the run.

        Raises:
            TargetError: a target that is negative, not finite or above log(V).
        """
        curve = self._curve(initial)
        for step in range((self._steps or 0) + 1):
            self._value(curve, step)

    def at(self, step: int, initial: float | None) -> float | None:
        """Target at an optimizer step, nats per token; None while it is not known.

        Args:
            step: optimizer steps taken.
            initial: first measured entropy of the run, nats per token.

        Raises:
            TargetError: a target that is negative, not finite or above log(V), or a schedule that
                fails.
        """
        return self._value(self._curve(initial), step)

    def ahead(self, step: int, steps: int, initial: float | None) -> float | None:
        """Target `steps` after `step`, or at the run's end if that comes first."""
        # a plain function of the step need not make sense after the end
        last = step + steps if self._steps is None else max(self._steps, step)
        return self.at(min(step + steps, last), initial)

    def _curve(self, initial: float | None) -> schedules.Schedule | None:
        if self.schedule is None or schedules.is_anchored(self.schedule):
            return self.schedule
        # rounding may leave the entropy of a deterministic policy a hair below 0
        return None if initial is None else schedules.anchor(self.schedule, max(initial, 0.0))

    def _value(self, curve: schedules.Schedule | None, step: int) -> float | None:
        if curve is None:
            return None
        try:
            target = float(curve(step))
        except Exception as error:
            raise TargetError(
                f"the schedule {curve!r} has no number for step {step} "
                f"({type(error).__name__}: {error}); it is asked for every step of the run from 0 "
                "to the last, the state after the last one included"
            ) from error
        if not math.isfinite(target) or target < 0:
            raise TargetError(
                f"the schedule {curve!r} asks for {target} nats per token at step {step}; "
                "a target must be finite and at least 0"
            )
        if self._max_entropy is not None and target > self._max_entropy:
            raise TargetError(
                f"the schedule {curve!r} asks for {target:.4g} nats per token at step "
                f"{step}, above log(vocabulary) = {self._max_entropy:.4g}, which no policy can "
                "have; lower the target"
            )
        return target
