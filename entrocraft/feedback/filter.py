"""Kalman filter of the policy's entropy, of its pending change, and of the gain of the effects.

One batch measures the policy's entropy with a noise as large as what several steps move. Between
measurements the policy moves by a predictable amount: the effects of the rollouts that were kept,
spread over time by the optimizer's momentum, times gains that have to be learned, plus a drift that
no effect explains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from entrocraft.rollouts.step import StepInfo
from entrocraft.storage import read_number

__all__ = ["EntropyFilter", "arrival"]

_STATES = 8
(_ENTROPY, _PENDING, _DRIFT, _POSITIVE, _NEGATIVE, _BIAS_TRAINED, _BIAS_LEFT_OUT, _BEFORE) = range(
    _STATES
)
_GAINS = (_POSITIVE, _NEGATIVE)

# gains: the first guess takes all effects of a batch together for this share of the entropy; its
# standard deviation and that of the change per step are relative to it, as is the bound
_REACHABLE, _GAIN_SPREAD, _GAIN_WALK, _GAIN_BOUND = 0.05, 1.2, 0.02, 30.0
# drift and biases: standard deviations at first and of the change per step, relative to the first
# entropy; on prompts left out of the update the bias is 0.4 times that on prompts trained on
_SPREADS = {_DRIFT: 0.003, _BIAS_TRAINED: 0.002, _BIAS_LEFT_OUT: 0.4 * 0.002}
_WALKS = {_DRIFT: 0.003, _BIAS_TRAINED: 0.0002, _BIAS_LEFT_OUT: 0.4 * 0.0002}
_UNEXPLAINED = 1.0  # what the effects miss, in units of the root of their sum of squares
_ERROR_MEMORY = 0.9  # per batch, of the squared standard errors of measured entropies
_LARGEST_SURPRISE = 4.0  # standard deviations; a larger residual is cut to this
_CHANGE_ERROR = 0.1  # of a measured change: error beyond its standard error
_LEAST, _MOST = 1e-300, 1e150  # of numbers in a state: above 0, and with a finite square
_LOST_ENTROPY_ERROR = 0.1  # of the first entropy: standard error after numbers have overflowed


def arrival(momentum: float, steps: float) -> tuple[float, float]:
    """Shares, in [0, 1], that arrive during a batch's steps: of what was pending, of what it adds.

    The batch adds the same at each of its steps, and a fraction 1 - momentum of all that is pending
    arrives at each step.
    """
    before = 1 - momentum**steps
    if steps <= 1:
        return before, before
    whole = int(steps)
    # sum of momentum**k for k = 1 .. whole
    kept = momentum * (1 - momentum**whole) / (1 - momentum)
    return before, 1 - kept / whole


@dataclass(frozen=True)
class EntropyFilter:
    """What is known of entropy, pending change, unexplained drift and two gains.

    With H the entropy, U the pending change, b the drift per optimizer step (all in nats per
    token), g+ and g- the nats per unit of predicted effect of rollouts with positive and with
    negative advantage, X+ and X- the sums of the effects of the rollouts kept, and ``p`` and ``q``
    from `arrival`::

        F = g+ X+ + g- X- + noise
        H <- H + p U + q F + steps b        U <- (1 - p) U + (1 - q) F

    b and the gains are random walks: a constant error of the model ends up in them and leaves no
    steady error. Measurements count by their standard errors: of the entropy of a batch (`update`;
    averaged over batches, as a batch of more entropy has a larger one and would count for less),
    and, where there is one, of the change that an update made (`update_change`). A change that is
    measured on prompts that were trained on is off by a bias, about the same for a while at every
    step; on prompts left out it is smaller. Both, with fresh batches, reveal them.

    Attributes:
        first: first measured entropy, nats per token; None before the first batch.
        first_gain: first guess of g+ and g-; None before an effect is known.
        mean: (8,) float64: H, U, b, g+, g-, the biases on prompts trained on and on prompts left
            out, and H before the last batch.
        covariance: (8, 8) float64.
        steps: optimizer steps of the last batch; None before it.
        variance: of the measured entropies, a running mean of their squared standard errors.
    """

    first: float | None = None
    first_gain: float | None = None
    mean: Tensor = field(default_factory=lambda: torch.zeros(_STATES, dtype=torch.float64))
    covariance: Tensor = field(
        default_factory=lambda: torch.zeros(_STATES, _STATES, dtype=torch.float64)
    )
    steps: float | None = None
    variance: float | None = None

    @property
    def entropy(self) -> float:
        """Estimate of the present policy's entropy, nats per token."""
        return float(self.mean[_ENTROPY])

    @property
    def stderr(self) -> float:
        """Standard error of `entropy`, nats per token."""
        return math.sqrt(max(float(self.covariance[_ENTROPY, _ENTROPY]), 0.0))

    @property
    def pending(self) -> float:
        """Pending change: nats per token that momentum will still bring."""
        return float(self.mean[_PENDING])

    @property
    def drift(self) -> float:
        """Nats per token and optimizer step that no effect explains."""
        return float(self.mean[_DRIFT])

    @property
    def gains(self) -> tuple[float, float]:
        """Nats per unit of effect, of positive and of negative advantages; 0 while unknown."""
        return float(self.mean[_POSITIVE]), float(self.mean[_NEGATIVE])

    def in_nats(self, effects: tuple[float, float]) -> float:
        """Total change in nats of kept effects (positive, negative advantages)."""
        positive, negative = self.gains
        return positive * effects[0] + negative * effects[1]

    def update(self, entropy: float, stderr: float, size: float) -> EntropyFilter:
        """Take the entropy (nats per token) of a batch, before its update.

        `stderr` is not finite if unknown; `size` is the sum of the batch's absolute effects.
        """
        first = max(entropy, 1e-6) if self.first is None else self.first
        noise = max(stderr if math.isfinite(stderr) else 0.1 * first, 1e-6 * first)
        variance = noise * noise
        if self.variance is not None:
            variance = _ERROR_MEMORY * self.variance + (1 - _ERROR_MEMORY) * variance
        if float(self.covariance[_ENTROPY, _ENTROPY]) == 0:
            mean, covariance = self.mean.clone(), self.covariance.clone()
            if self.first is None:
                mean[_ENTROPY] = entropy
            covariance[_ENTROPY, _ENTROPY] = variance
            for index, share in _SPREADS.items():
                spread = share * first
                covariance[index, index] = spread * spread
            updated = replace(self, first=first, mean=mean, covariance=covariance)
        else:
            reading = torch.zeros(_STATES, dtype=torch.float64)
            reading[_ENTROPY] = 1.0
            updated = self._corrected(reading, entropy, math.sqrt(variance))
        return replace(updated, variance=variance)._with_gain(size)

    def _with_gain(self, size: float) -> EntropyFilter:
        """Guess the gains once the size of the effects is known."""
        if self.first_gain is not None or not 0 < size < math.inf:
            return self
        gain = _REACHABLE * (self.first or 0.0) / size
        if not 0 < gain < math.inf:
            return self
        mean, covariance = self.mean.clone(), self.covariance.clone()
        spread = _GAIN_SPREAD * gain
        for index in _GAINS:
            mean[index] = gain
            covariance[index, index] = spread * spread
        return replace(self, first_gain=gain, mean=mean, covariance=covariance)

    def predict(self, effects: tuple[float, float], spread: float, step: StepInfo) -> EntropyFilter:
        """Move on over the optimizer steps of a batch.

        `effects` are summed over what is kept, by sign of the advantage (positive, negative);
        `spread` is the root of the sum of their squares.
        """
        steps = float(step.optimizer_steps)
        before, added = arrival(step.decay, steps)
        move = torch.eye(_STATES, dtype=torch.float64)
        move[_ENTROPY, _PENDING], move[_PENDING, _PENDING] = before, 1 - before
        move[_ENTROPY, _DRIFT] = steps
        for gain, effect in zip(_GAINS, effects, strict=True):
            move[_ENTROPY, gain], move[_PENDING, gain] = added * effect, (1 - added) * effect
        move[_BEFORE, _BEFORE], move[_BEFORE, _ENTROPY] = 0.0, 1.0
        mean = move @ self.mean
        positive, negative = float(mean[_POSITIVE]), float(mean[_NEGATIVE])
        unexplained = _UNEXPLAINED * 0.5 * (positive + negative) * spread
        enters = torch.zeros(_STATES, dtype=torch.float64)
        enters[_ENTROPY], enters[_PENDING] = added, 1 - added
        noise = unexplained * unexplained * torch.outer(enters, enters)
        first, first_gain = self.first or 0.0, self.first_gain or 0.0
        walks = {index: share * first for index, share in _WALKS.items()}
        for index, walk in (walks | dict.fromkeys(_GAINS, _GAIN_WALK * first_gain)).items():
            noise[index, index] = steps * walk * walk
        covariance = move @ self.covariance @ move.T + noise
        covariance = 0.5 * (covariance + covariance.T)
        return replace(self, mean=mean, covariance=covariance, steps=steps)._usable(first)

    def predicted_change(self, effects: tuple[float, float], step: StepInfo) -> float:
        """Change of the entropy, in nats per token, until this batch's steps are done."""
        before, added = arrival(step.decay, step.optimizer_steps)
        drift = step.optimizer_steps * self.drift
        return before * self.pending + added * self.in_nats(effects) + drift

    def report(self, effects: tuple[float, float], step: StepInfo) -> dict[str, float]:
        """Numbers to log of a batch whose kept effects these are."""
        positive, negative = self.gains
        return {
            "entropy/chosen_change": self.in_nats(effects),
            "entropy/predicted_change": self.predicted_change(effects, step),
            "entropy/drift": self.drift,
            "entropy/gain_positive": positive,
            "entropy/gain_negative": negative,
        }

    def update_change(self, change: float, stderr: float, trained: bool = True) -> EntropyFilter:
        """Take a change of the entropy (nats per token) over the steps of the last `predict`.

        There may be several, of independent errors; one of unknown `stderr` is ignored.
        `trained` tells whether it was measured on prompts that were trained on.
        """
        if self.steps is None or not (math.isfinite(change) and math.isfinite(stderr)):
            return self
        noise = max(math.hypot(stderr, _CHANGE_ERROR * change), 1e-6 * (self.first or 0.0))
        reading = torch.zeros(_STATES, dtype=torch.float64)
        reading[_ENTROPY], reading[_BEFORE] = 1.0, -1.0
        reading[_BIAS_TRAINED if trained else _BIAS_LEFT_OUT] = self.steps
        return self._corrected(reading, change, noise)

    def _corrected(self, reading: Tensor, value: float, noise: float) -> EntropyFilter:
        """Kalman correction by a measurement of ``reading @ mean``."""
        column = self.covariance @ reading
        variance = max(float(reading @ column), 0.0) + noise * noise
        if not variance > 0:
            return self
        largest = _LARGEST_SURPRISE * math.sqrt(variance)
        surprise = max(-largest, min(largest, value - float(reading @ self.mean)))
        mean = self.mean + column * (surprise / variance)
        covariance = self.covariance - torch.outer(column, column) / variance
        mean[_ENTROPY] = mean[_ENTROPY].clamp(min=0.0)
        if self.first_gain is not None:
            low, high = self.first_gain / _GAIN_BOUND, self.first_gain * _GAIN_BOUND
            for gain in _GAINS:
                mean[gain] = mean[gain].clamp(low, high)
        return replace(self, mean=mean, covariance=covariance)._usable(float(mean[_ENTROPY]))

    def _usable(self, entropy: float) -> EntropyFilter:
        """Start afresh, at this entropy, where numbers left the range of float64."""
        if bool(torch.isfinite(self.mean).all() and torch.isfinite(self.covariance).all()):
            return self
        fresh, first = EntropyFilter(self.first), self.first or 0.0
        fresh.mean[_ENTROPY] = entropy if math.isfinite(entropy) else first
        error = _LOST_ENTROPY_ERROR * first
        fresh.covariance[_ENTROPY, _ENTROPY] = error * error
        return fresh

    def state_dict(self) -> dict[str, Any]:
        """Return what the filter knows, JSON-serializable."""
        matrices = {"mean": self.mean.tolist(), "covariance": self.covariance.tolist()}
        return {**vars(self), **matrices}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> EntropyFilter:
        """Make a filter from what `state_dict` gave.

        Raises:
            ValueError, KeyError: a number that is missing or out of range, or a wrong shape.
        """
        first, first_gain, steps, variance = (
            None if state[name] is None else read_number(state, name, low=_LEAST, high=_MOST)
            for name in ("first", "first_gain", "steps", "variance")
        )
        mean = finite(state["mean"], (_STATES,))
        covariance = finite(state["covariance"], (_STATES, _STATES))
        return cls(first, first_gain, mean, covariance, steps, variance)


def finite(values: Any, shape: tuple[int, ...]) -> Tensor:
    try:
        numbers = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"expected numbers of shape {shape}: {error}") from error
    if tuple(numbers.shape) != shape:
        raise ValueError(f"expected numbers of shape {shape}, got {tuple(numbers.shape)}")
    if not bool(torch.isfinite(numbers).all()):
        raise ValueError(f"expected finite numbers, got {values!r}"[:200])
    return numbers
