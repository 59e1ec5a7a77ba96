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
        stderr: its standard error; infinite if unknown.
        target: optimizer steps ahead -> target entropy, nats per token.
        step: position of the batch in the run.
        response: pressure -> expected sums of the kept effects; see `selection.response.Response`.
    """

    measured: float
    stderr: float
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

    @abstractmethod
    def choose(self, memory: Any, situation: Situation) -> tuple[Pressure, Any, dict[str, float]]:
        """Take one measurement; return the pressure for its batch, the memory, numbers to log."""
