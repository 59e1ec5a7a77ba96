"""What a feedback loop sees before it chooses the pressure of a batch, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from entrocraft.rollouts.step import StepInfo

__all__ = ["Feedback", "Pressure", "ResponseCurve", "Situation"]


class ResponseCurve(Protocol):
    """Expected sums of the kept effects as a function of the pressure; see `selection.response`."""

    @property
    def size(self) -> float:
        """Sum of the absolute effects of the active rollouts over all steps of the batch."""
        ...

    def at(self, pressure: float) -> tuple[float, float]:
        """Expected sums of the kept effects, of positive and of negative advantages."""
        ...

    def solve(self, gains: tuple[float, float], wanted: float) -> tuple[float, float]:
        """Pressure at which the kept effects times the gains sum to `wanted`, and what it gives."""
        ...


@dataclass(frozen=True)
class Situation:
    """One batch as the feedback sees it.

    Attributes:
        measured: entropy of the batch, nats per token.
        stderr: its standard error; infinite if unknown.
        target: optimizer steps ahead -> target entropy, nats per token.
        step: position of the batch in the run.
        response: pressure -> expected sums of the kept effects.
    """

    measured: float
    stderr: float
    target: Callable[[int], float]
    step: StepInfo
    response: ResponseCurve


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
    """A loop from entropies (nats per token) to pressure; its state is kept by the controller."""

    @property
    def limit(self) -> float:
        """Largest pressure."""
        ...

    def start(self) -> Any:
        """Return the state before the first batch."""
        ...

    def choose(self, state: Any, situation: Situation) -> tuple[Pressure, Any, dict[str, float]]:
        """Take one measurement; return the pressure, the new state and numbers to log."""
        ...

    def applied(
        self, state: Any, effects: tuple[float, float], spread: float, step: StepInfo
    ) -> tuple[Any, dict[str, float]]:
        """Take the summed effects of what enters the update; return state and numbers to log."""
        ...

    def post_update(self, state: Any, change: float, stderr: float, trained: bool) -> Any:
        """Take a measured change of the entropy by the last update; return the state."""
        ...

    def state_dict(self, state: Any) -> dict[str, Any]:
        """Return a state, JSON-serializable."""
        ...

    def load_state(self, state: dict[str, Any]) -> Any:
        """Make a state from what `state_dict` gave.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        ...
