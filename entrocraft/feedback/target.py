"""The target of a run: its schedule, relative to the first measurement, and checked."""

from __future__ import annotations

import math
from numbers import Real

from entrocraft import schedules

__all__ = ["Target", "TargetError"]

_MOST_CHECKED = 10_000  # steps of a run; of a longer one every n-th


class TargetError(ValueError):
    """A schedule that asks for an entropy that no policy can have, or has no answer."""


class Target:
    """Target entropy by optimizer step, for a controller or any closed-loop method.

    >>> target = Target("linear(initial, 0.5*initial, 100)")
    >>> target.at(50, initial=None) is None
    True
    >>> target.at(50, initial=0.8)
    0.6000000000000001

    `schedule` is a callable, text for `schedules.from_string`, a number for a constant, or None for
    no target.

    Raises:
        ValueError: something else, or text that is no schedule.
    """

    def __init__(self, schedule: schedules.Schedule | str | float | None) -> None:
        if isinstance(schedule, Real) and not isinstance(schedule, bool):
            schedule = schedules.constant(float(schedule))
        elif isinstance(schedule, str):
            schedule = schedules.from_string(schedule)
        elif schedule is not None and not callable(schedule):
            raise ValueError(f"schedule {schedule!r} is no callable, text or number")
        self.schedule = schedule
        self._max_entropy: float | None = None
        self._steps: int | None = None

    def prepare(
        self, vocabulary: int | None, steps: int | None, initial: float | None = None
    ) -> None:
        """Set the limits of a run, its vocabulary and optimizer steps, and `check` the schedule."""
        if vocabulary is not None:
            if not isinstance(vocabulary, int) or vocabulary < 1:
                raise ValueError(f"vocabulary must be at least 1 token, got {vocabulary}")
            self._max_entropy = math.log(vocabulary)
        self._steps = steps
        self.check(initial)

    def replaced(self, schedule: schedules.Schedule | str | float | None) -> Target:
        """Return another schedule under the limits of this run, not checked yet."""
        other = Target(schedule)
        other._max_entropy, other._steps = self._max_entropy, self._steps
        return other

    def check(self, initial: float | None) -> None:
        """Check the targets of the run, if `initial` is known or the schedule does without.

        Raises:
            TargetError: see `at`.
        """
        end = self._steps or 0
        for step in (*range(0, end, max(1, end // _MOST_CHECKED)), end):
            self.at(step, initial)

    def at(self, step: int, initial: float | None) -> float | None:
        """Target at an optimizer step, nats per token; None while it is not known.

        Raises:
            TargetError: a target that is negative, not finite or above log(vocabulary), or a
                schedule that fails.
        """
        curve = self.schedule
        if curve is None:
            return None
        if not schedules.is_anchored(curve):
            if initial is None:
                return None
            # rounding may leave the entropy of a deterministic policy a hair below 0
            curve = schedules.anchor(curve, max(initial, 0.0))
        try:
            target = float(curve(step))
        except Exception as error:
            raise TargetError(
                f"the schedule {curve!r} has no number for step {step} ({type(error).__name__}: "
                f"{error}); it needs a number at every step up to the run's end"
            ) from error
        if not math.isfinite(target) or target < 0:
            raise TargetError(
                f"the schedule {curve!r} asks for {target} nats per token at step {step}; "
                "a target must be finite and at least 0"
            )
        if self._max_entropy is not None and target > self._max_entropy:
            raise TargetError(
                f"the schedule {curve!r} asks for {target:.4g} nats per token at step {step}, "
                f"above log(vocabulary) = {self._max_entropy:.4g}; lower the target"
            )
        return target

    def ahead(self, step: int, steps: int, initial: float | None) -> float | None:
        """Target `steps` after `step`, or at the run's end if that comes first."""
        end = step + steps
        if self._steps is not None:
            # a plain function of the step need not make sense after the end
            end = min(end, max(self._steps, step))
        return self.at(end, initial)
