"""When a rollout batch is used, and what the optimizer's momentum does meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from entrocraft.typed import check_types

__all__ = ["MOST_STEPS", "StepInfo"]

MOST_STEPS = 100_000
"""Optimizer steps of one batch, or ahead of it, at most: planning goes through them one by one."""

_USUAL_MOMENTUM = 0.9  # Adam's, where the trainer does not tell


@dataclass(frozen=True)
class StepInfo:
    """Position of one rollout batch in the run.

    Args:
        step: optimizer steps taken before this batch; the schedule counts in these.
        optimizer_steps: that the batch is used for; a fraction where several batches make one.
        momentum: factor by which the pending change in the optimizer shrinks from step to step
            (Adam's beta1, SGD's momentum); None if it is not known: then 0.9 is taken.
        learning_rate: of these steps; None if it is not known.
        relative_learning_rate: the same as a share of the run's largest; effects shrink with it.

    Raises:
        ValueError: a number out of range; the message names it.
    """

    step: int
    optimizer_steps: float = 1
    momentum: float | None = None
    learning_rate: float | None = None
    relative_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        if self.step < 0:
            raise ValueError(f"step must be at least 0 optimizer steps, got {self.step}")
        if not 0 < self.optimizer_steps <= MOST_STEPS:
            raise ValueError(
                f"optimizer_steps must be above 0 and at most {MOST_STEPS}, got "
                f"{self.optimizer_steps}"
            )
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(
                f"momentum must be in [0, 1), got {self.momentum}; None if it is not known"
            )
        if not 0 <= self.relative_learning_rate <= 1:
            raise ValueError(
                f"relative_learning_rate must be in [0, 1], got {self.relative_learning_rate}"
            )

    @property
    def decay(self) -> float:
        """Momentum, or Adam's usual 0.9 where it is not known."""
        return _USUAL_MOMENTUM if self.momentum is None else self.momentum
