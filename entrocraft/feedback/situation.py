"""Input and output of a feedback: what it sees of a batch, and the pressure it chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

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


class Feedback(Protocol):
    """A loop from entropies (nats per token) to pressure; the controller keeps its state.

    `choose` and `applied` also return numbers to log; `load_state` raises a ValueError, KeyError or
    TypeError on anything that `state_dict` did not give.
    """

    limit: float

    def start(self) -> Any:
        """Return the state before the first batch."""

    def choose(self, state: Any, situation: Situation) -> tuple[Pressure, Any, dict]:
        """Take one measurement and return the pressure for its batch."""

    def applied(
        self, state: Any, effects: tuple[float, float], spread: float, step: StepInfo
    ) -> tuple[Any, dict]:
        """Take summed effects of what enters the update, and the root of their squared sum."""

    def post_update(self, state: Any, change: float, stderr: float, trained: bool) -> Any:
        """Take a measured change of the entropy by the last update, nats per token."""

    def state_dict(self, state: Any) -> dict[str, Any]:
        """Return a state, JSON-serializable."""

    def load_state(self, state: dict[str, Any]) -> Any:
        """Make a state from what `state_dict` gave."""
