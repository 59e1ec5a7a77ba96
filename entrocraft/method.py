"""What an adapter hosts: a method that turns a rollout batch into advantages."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from entrocraft.rollouts import RolloutBatch, RolloutStats

__all__ = ["Decision", "EntropyControlWarning", "EntropyMethod", "ExtraRollouts", "StepInfo"]

_USUAL_MOMENTUM = 0.9  # Adam's, where the trainer does not tell


class EntropyControlWarning(UserWarning):
    """Entropy control is on but cannot do what was asked, and why."""


@dataclass(frozen=True)
class Decision:
    """What enters the update.

    Attributes:
        weights: (B,) float64, 0 = rejected; multiply into the advantages.
        probabilities: (B,) float64, keep probabilities in [0, 1].
        advantages: (B,) float64, ready to train on: the batch's advantages times `weights` (the
            rule `switch` puts raw rewards in their place).
        metrics: the keys of docs/metrics.md.
        useful: number of rollouts that carry a gradient: kept, with tokens and an advantage not 0.
        settings: options of the trainer, by its own names, for the updates of this batch.
        extra: rollouts that the adapter is to add to this batch, or None.
    """

    weights: Tensor
    probabilities: Tensor
    advantages: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    useful: int = 0
    settings: dict[str, float] = field(default_factory=dict)
    extra: ExtraRollouts | None = None


@dataclass(frozen=True)
class ExtraRollouts:
    """More rollouts for a part of the batch's prompts, sampled at another temperature.

    Those that beat their group by more than `least_advantage` take the places of the batch's first
    rollouts and are trained on with `advantage`.

    Attributes:
        share: part of the batch's prompts, in (0, 1]; the first ones.
        temperature: sampling temperature.
        rows: rollouts to take over, at most.
        taken: part of those, in [0, 1], that is taken over.
        least_advantage: what the estimator's advantage has to exceed.
        advantage: to train on.
    """

    share: float
    temperature: float
    rows: int
    taken: float = 1.0
    least_advantage: float = 0.0
    advantage: float = 1.0


@dataclass(frozen=True)
class StepInfo:
    """When a batch is used, and what the optimizer is doing meanwhile; see `RolloutBatch`.

    Raises:
        ValueError: a number that makes no sense; the message names it.
    """

    step: int
    optimizer_steps: float = 1
    drift: float | None = None
    momentum: float | None = None

    def __post_init__(self) -> None:
        if not self.optimizer_steps > 0:
            raise ValueError(f"optimizer_steps must be above 0, got {self.optimizer_steps}")
        if self.drift is not None and not math.isfinite(self.drift):
            raise ValueError(
                f"drift must be finite nats, got {self.drift}; None if it is not known"
            )
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(
                f"momentum must be in [0, 1), got {self.momentum}; None if it is not known"
            )

    @property
    def decay(self) -> float:
        """Momentum, or what is usual where it is not known."""
        return _USUAL_MOMENTUM if self.momentum is None else self.momentum

    @classmethod
    def of(cls, batch: RolloutBatch | RolloutStats, told: dict[str, Any]) -> StepInfo:
        """Read a batch's own clock, and what was told by keyword."""
        if isinstance(batch, RolloutBatch):
            told = {
                "step": batch.step,
                "optimizer_steps": batch.optimizer_steps,
                "drift": batch.drift,
                "momentum": batch.momentum,
            } | told
        return cls(**told)


class EntropyMethod(Protocol):
    """Anything that turns a rollout batch into advantages; the controller is one.

    A method may also have

    - `refresh` (an int, for the level `gradient`), and `remeasure` (a bool) with
      `post_update(change, stderr, trained)`; see `EntropyController`;
    - `trainer_options`, `reweigh(tokens)`, `bonus_entropy(logits)` and `stepped(bonus)`; see
      `entrocraft.methods.Baseline`.
    """

    @property
    def effect(self) -> str | None:
        """Effect level whose token sensitivities the adapter has to provide, or None."""
        ...

    def prepare(self, *, vocabulary: int | None = None, steps: int | None = None) -> None:
        """Learn vocabulary size and run length; raise before any update if they do not fit."""
        ...

    def decide(self, batch: RolloutBatch | RolloutStats, **clock: Any) -> Decision:
        """Decide on one rollout batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the memory, JSON-serializable."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...
