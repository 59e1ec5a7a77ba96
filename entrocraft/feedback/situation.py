"""Feedback: the base class of the loops, what they see of a batch, and the pressure they choose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """A loop from entropies (nats per token) to pressure; the controller keeps its state.

    As it stands it has no memory. `choose` and `applied` also return numbers to log.
    """

    limit: float

    def start(self) -> Any:
        """Return the state before the first batch."""
        return None

    @abstractmethod
    def choose(self, state: Any, situation: Situation) -> tuple[Pressure, Any, dict[str, float]]:
        """Take one measurement and return the pressure for its batch."""

    def applied(
        self, state: Any, effects: tuple[float, float], spread: float, step: StepInfo
    ) -> tuple[Any, dict[str, float]]:
        """Take summed effects of what enters the update by sign, the root of their squared sum."""
        return state, {}

    def post_update(self, state: Any, change: float, stderr: float, trained: bool) -> Any:
        """Take a measured change of the entropy by the last update, nats per token."""
        return state

    def state_dict(self, state: Any) -> dict[str, Any]:
        """Return a state, JSON-serializable."""
        return {}

    def load_state(self, state: dict[str, Any]) -> Any:
        """Make a state from what `state_dict` gave.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        return self.start()
