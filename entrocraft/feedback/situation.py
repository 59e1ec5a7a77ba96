"""Feedback: the base class of the loops, what they see of a batch, and the pressure they choose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from entrocraft.feedback.filter import EntropyFilter
from entrocraft.rollouts.step import StepInfo

__all__ = ["Feedback", "Pressure", "Situation"]


@dataclass(frozen=True)
class Situation:
    """One batch as the feedback sees it.

    Attributes:
        measured: entropy of the batch, nats per token.
        target: optimizer steps ahead -> target entropy, nats per token.
        step: position of the batch in the run.
        response: a `selection.ResponseCurve`.
    """

    measured: float
    target: Callable[[int], float]
    step: StepInfo
    response: Any


@dataclass(frozen=True)
class Pressure:
    """One signed number for a batch: positive asks for more entropy, zero is plain RL.

    Attributes:
        value: the pressure; its unit is the usual size of an effect.
        saturated: whether this is all that the feedback can ask for.
        shortfall: signed nats per token that were wanted beyond reach; 0 unless saturated.
    """

    value: float
    saturated: bool = False
    shortfall: float = 0.0


class Feedback(ABC):
    """A loop from entropies (nats per token) to pressure; the controller keeps its memory."""

    limit: float

    def start(self) -> EntropyFilter | None:
        """Return the memory before the first batch; None if the loop has none."""
        return None

    def measure(self, memory: Any, measured: float, stderr: float, size: float) -> Any:
        """Take one measurement, nats per token; return the memory after it.

        Args:
            memory: before the measurement.
            measured: entropy of the batch.
            stderr: its standard error; infinite if unknown.
            size: sum of the absolute effects of the batch.
        """
        return memory

    @abstractmethod
    def plan(self, memory: Any, situation: Situation) -> tuple[Pressure, dict[str, float]]:
        """Return the pressure for a batch, and numbers to log."""
