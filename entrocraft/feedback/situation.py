"""Input and output of a feedback: what it sees of a batch, and the pressure it chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from entrocraft.rollouts.step import StepInfo

__all__ = ["Pressure", "Situation"]


@dataclass(frozen=True)
class Situation:
    """One batch as the feedback sees it.

    Attributes:
        measured: entropy of the batch, nats per token.
        target: optimizer steps ahead -> target entropy, nats per token.
        step: position of the batch in the run.
        response: what each pressure would do; see `selection.response.ResponseCurve`.
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
