"""The loop: schedule, feedback, effects and acceptance, once per rollout batch."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from entrocraft import acceptance, effects, schedules
from entrocraft.feedback import Feedback, GainTracker, ProportionalIntegral, Relay
from entrocraft.rollouts import RolloutBatch, RolloutSums

__all__ = ["Decision", "EntropyControlWarning", "EntropyController", "EntropyMethod"]

_SCALE_MEMORY = 0.9
_SATURATED_BEFORE_WARNING = 20
_LARGEST_RENORMALISATION = 10.0


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
    """

    weights: Tensor
    probabilities: Tensor
    advantages: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    useful: int = 0


class EntropyMethod(Protocol):
    """What an adapter hosts: anything that turns a rollout batch into advantages."""

    @property
    def effect(self) -> str | None:
        """Effect level whose token sensitivities the adapter has to provide, or None."""
        ...

    def prepare(self, *, vocabulary: int | None = None, steps: int | None = None) -> None:
        """Learn vocabulary size and run length; raise before any update if they do not fit."""
        ...

    def decide(self, batch: RolloutBatch | RolloutSums, **clock: Any) -> Decision:
        """Decide on one rollout batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the memory, JSON-serialisable."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...


class EntropyController:
    """Keeps policy entropy on a schedule by choosing which rollouts enter the update.

    >>> controller = EntropyController(schedule="linear(0.6, 0.3, 300)")
    >>> controller
    EntropyController(schedule=linear(0.6, 0.3, 300), rule='tilt', effect='logit', seed=0)

    Args:
        schedule: step -> target entropy (nats per token): a callable, or text for
            `schedules.from_string`. None only observes (with `rule=None`).
        rule: "tilt" (default), "sign" (the paper's Algorithm 1), "switch" (the rule of its public
            code), an `acceptance.Rule`, or None: observe and log, reject nothing.
        effect: effect level, one of `effects.LEVELS`; None takes the rule's own.
        band: for "sign" and "switch": half-width around the target, or (low, high) offsets from it,
            in nats.
        feedback: the loop; None takes `feedback.ProportionalIntegral` or, for band rules,
            `feedback.Relay`.
        renormalise: "none"; "rollouts" or "tokens" scale what is kept by the share that carried a
            vote and was rejected, so that the loss of a smaller batch comes out (at most 10 times).
        seed: of the controller's own generator; the global one is never touched.

    Raises:
        ValueError: a setting that cannot be met; the message names the value and the remedy.
    """

    def __init__(
        self,
        schedule: schedules.Schedule | str | float | None,
        rule: str | acceptance.Rule | None = "tilt",
        effect: str | None = None,
        *,
        band: float | tuple[float, float] = 0.05,
        feedback: Feedback | None = None,
        renormalise: str = "none",
        seed: int = 0,
    ) -> None:
        if isinstance(schedule, (int, float)):
            schedule = schedules.constant(schedule)
        elif isinstance(schedule, str):
            schedule = schedules.from_string(schedule)
        elif schedule is None and rule is not None:
            raise ValueError(
                "a rule needs a schedule, e.g. schedule='linear(initial, 0.3, 300)'; rule=None "
                "only observes"
            )
        elif schedule is not None and not callable(schedule):
            raise ValueError(f"schedule must be a callable or text, got {schedule!r}")
        if renormalise not in ("none", "rollouts", "tokens"):
            raise ValueError(
                f"renormalise must be 'none', 'rollouts' or 'tokens', got {renormalise!r}"
            )
        self.schedule = schedule
        self.rule = None if rule is None else acceptance.get_rule(rule)
        self._effect = effect or (self.rule.effect if self.rule else "logit")
        if self._effect not in effects.LEVELS:
            raise ValueError(
                f"unknown effect level {effect!r}; choose one of {', '.join(effects.LEVELS)}"
            )
        self.feedback = _default_feedback(self.rule, band) if feedback is None else feedback
        self.renormalise = renormalise
        self.seed = int(seed)
        self._max_entropy: float | None = None
        self._steps: int | None = None
        self._anchored = schedule if self._needs_no_anchor() else None
        self._initial: float | None = None
        self._decisions = 0
        self._scale = 0.0
        self._gain = GainTracker()
        self._saturated_in_a_row = 0
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        rule = None if self.rule is None else self.rule.name
        return (
            f"EntropyController(schedule={self.schedule!r}, rule={rule!r}, "
            f"effect={self._effect!r}, seed={self.seed})"
        )

    @property
    def effect(self) -> str | None:
        """Effect level that batches have to serve; None while nothing is steered."""
        return None if self.rule is None else self._effect

    def prepare(self, *, vocabulary: int | None = None, steps: int | None = None) -> None:
        """Check the schedule against the vocabulary and the run's length, before any update.

        Args:
            vocabulary: number of tokens V; no target can be above log(V).
            steps: optimiser steps of the run; every target up to there is checked, as soon as the
                initial entropy is known if the schedule is relative to it.

        Raises:
            ValueError: a target that is negative, not finite or above log(V).
        """
        if vocabulary is not None:
            if vocabulary < 1:
                raise ValueError(f"vocabulary must be at least 1 token, got {vocabulary}")
            self._max_entropy = math.log(vocabulary)
        self._steps = steps
        self._check_targets(steps)

    def decide(self, batch: RolloutBatch | RolloutSums, **clock: Any) -> Decision:
        """Choose the rollouts of one batch.

        Args:
            batch: a `RolloutBatch`, or the `RolloutSums` of one, gathered over ranks; then its
                `step`, `optimiser_steps` and `drift` are given by keyword.

        Raises:
            ValueError: a batch or a target that makes no sense; nothing was changed, training can
            stop safely.
        """
        if isinstance(batch, RolloutBatch):
            clock = {
                "step": batch.step,
                "optimiser_steps": batch.optimiser_steps,
                "drift": batch.drift,
            } | clock
            batch = batch.sums()
        before = self.state_dict()
        try:
            return self._decide(batch, **clock)
        except BaseException:
            self._restore(before)
            raise

    def _decide(
        self, sums: RolloutSums, step: int, optimiser_steps: float = 1, drift: float | None = None
    ) -> Decision:
        _check_clock(sums, optimiser_steps, drift)
        pressure, metrics = self._listen(sums.mean_entropy(), step, optimiser_steps)
        if math.isfinite(stderr := sums.entropy_stderr()):
            metrics["entropy/measured_stderr"] = stderr
        if self.rule is None:
            self._decisions += 1
            ones = torch.ones(len(sums), dtype=torch.float64)
            metrics |= _outcome(0.0, ones, sums.votes, saturated=False)
            useful = int(sums.votes.sum())
            return Decision(ones, ones.clone(), sums.advantages.clone(), metrics, useful)
        effect = effects.rollout_effects(sums, self._effect)
        self._follow_scale(sums, effect)
        ballot = acceptance.Ballot(sums.advantages, effect, self._scale, sums.rewards)
        verdict = self.rule.judge(ballot, pressure)
        kept = self._draw(verdict, effect)
        votes = (verdict.advantages != 0) & (sums.tokens > 0)
        weights = kept.double() * self._renormalisation(kept, votes, sums.tokens)
        metrics |= _outcome(pressure, weights, votes, self.feedback.saturated)
        decision = Decision(
            weights,
            verdict.probabilities,
            verdict.advantages * weights,
            metrics,
            useful=int((votes & kept).sum()),
        )
        trained = effects.rollout_effects(
            replace(sums, advantages=decision.advantages), self._effect
        )
        metrics |= self._in_nats(sums.mean_entropy(), effect, float(trained.sum()), drift or 0.0)
        self._decisions += 1
        self._warn(metrics, decision)
        return decision

    def _listen(
        self, measured: float, step: int, optimiser_steps: float
    ) -> tuple[float, dict[str, float]]:
        """Give the measurement to the feedback; return the pressure and what there is to log."""
        self._anchor(measured)
        metrics = {"entropy/measured": measured}
        target = self.target(step)
        ahead = self.target(step + self.feedback.lead(optimiser_steps))
        if target is None or ahead is None:
            return 0.0, metrics
        pressure = self.feedback.update(measured, target, ahead, optimiser_steps)
        metrics["entropy/target"] = target
        metrics["entropy/estimate"] = self.feedback.estimate or 0.0
        if isinstance(self.feedback, Relay):
            metrics["entropy/low"] = target + self.feedback.band.low
            metrics["entropy/high"] = target + self.feedback.band.high
        return pressure, metrics

    def _in_nats(
        self, measured: float, effect: Tensor, predicted: float, drift: float
    ) -> dict[str, float]:
        """Learn the gain, and translate what is predicted and what was in reach by it."""
        self._gain.observe(measured)
        self._gain.predict(measured, predicted)
        if (gain := self._gain.gain) is None:
            return {}
        translated = {
            "entropy/gain": gain,
            "entropy/predicted_change": gain * predicted + drift,
            "entropy/authority_up": gain * float(effect.clamp(min=0).sum()),
            "entropy/authority_down": gain * float(effect.clamp(max=0).sum()),
        }
        return {key: nats for key, nats in translated.items() if math.isfinite(nats)}

    def _needs_no_anchor(self) -> bool:
        return self.schedule is None or schedules.is_anchored(self.schedule)

    def _anchor(self, measured: float) -> None:
        if self._initial is None:
            self._initial = measured
        if self._anchored is None and self.schedule is not None:
            # rounding may leave the entropy of a deterministic policy a hair below 0
            self._anchored = schedules.anchor(self.schedule, max(self._initial, 0.0))
            self._check_targets(self._steps)

    def _check_targets(self, steps: int | None) -> None:
        for step in range((steps or 0) + 1):
            self.target(step)

    def target(self, step: int) -> float | None:
        """Target entropy at an optimiser step, nats per token; None while it is not known."""
        if self._anchored is None:
            return None
        target = float(self._anchored(step))
        if not math.isfinite(target) or target < 0:
            raise ValueError(
                f"the schedule {self._anchored!r} asks for {target} nats per token at step {step}; "
                "a target must be finite and at least 0"
            )
        if self._max_entropy is not None and target > self._max_entropy:
            raise ValueError(
                f"the schedule {self._anchored!r} asks for {target:.4g} nats per token at step "
                f"{step}, above log(vocabulary) = {self._max_entropy:.4g}, which no policy can "
                "have; lower the target"
            )
        return target

    def _follow_scale(self, sums: RolloutSums, effect: Tensor) -> None:
        """Slow average of the mean size of the effects that carry a vote."""
        votes = effect[sums.votes]
        if len(votes) == 0:
            return
        size = float(votes.abs().mean())
        if not math.isfinite(size) or size == 0:
            return
        memory = _SCALE_MEMORY if self._scale > 0 else 0.0
        self._scale = memory * self._scale + (1 - memory) * size

    def _draw(self, verdict: acceptance.Verdict, effect: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self._decisions) % 2**63)
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        # ordered by effect, the draw is balanced in every range of effects: its sum stays on plan
        return acceptance.systematic_draw(
            verdict.probabilities, uniform, torch.argsort(effect, stable=True)
        )

    def _renormalisation(self, kept: Tensor, votes: Tensor, tokens: Tensor) -> float:
        if self.renormalise == "none":
            return 1.0
        size = torch.ones_like(tokens) if self.renormalise == "rollouts" else tokens
        left = float(size[kept | ~votes].sum())
        factor = float(size.sum()) / left if left else math.inf
        return min(factor, _LARGEST_RENORMALISATION)

    def _warn(self, metrics: dict[str, float], decision: Decision) -> None:
        saturated = metrics["entropy/saturated"] > 0
        self._saturated_in_a_row = self._saturated_in_a_row + 1 if saturated else 0
        if self._saturated_in_a_row >= _SATURATED_BEFORE_WARNING:
            self._warn_once(
                "saturated",
                f"entropy control has been saturated for {self._saturated_in_a_row} batches: "
                f"target {metrics['entropy/target']:.3f}, measured "
                f"{metrics['entropy/measured']:.3f} nats per token, keeping "
                f"{metrics['entropy/kept_fraction']:.0%} of the rollouts. The schedule asks for "
                "more than rejection can do: make it slower, give more rollouts per batch, or "
                "raise the learning "
                "rate" + ("" if self.rule and not self.rule.relay else ", or use rule='tilt'"),
            )
        if decision.useful == 0:
            self._warn_once(
                "empty",
                "no rollout with a non-zero advantage is left in a batch (logged as "
                "entropy/empty); its update carries no policy gradient, the optimiser still moves "
                "by momentum and weight decay",
            )

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(message, EntropyControlWarning, stacklevel=5)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs to decide as if never interrupted, for JSON."""
        return {
            "version": 1,
            "settings": self._settings(),
            "decisions": self._decisions,
            "initial": self._initial,
            "scale": self._scale,
            "feedback": self.feedback.state_dict(),
            "gain": self._gain.state_dict(),
            "saturated_in_a_row": self._saturated_in_a_row,
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: not a state of this class, or of another rule or feedback; nothing changed.
        """
        if not isinstance(state, dict) or state.get("version") != 1:
            raise ValueError(
                f"not a controller state of version 1: {str(state)[:200]}; was the checkpoint "
                "written by another version of entrocraft?"
            )
        if state.get("settings") != self._settings():
            warnings.warn(
                f"the checkpoint's controller was {state.get('settings')}, this one is "
                f"{self._settings()}; its memory is used with the new settings",
                EntropyControlWarning,
                stacklevel=2,
            )
        before = self.state_dict()
        try:
            self._restore(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._restore(before)
            raise ValueError(
                f"the checkpoint's memory does not fit {self!r} with feedback "
                f"{type(self.feedback).__name__} ({error!r}); resume with the rule and feedback "
                "that wrote it"
            ) from error

    def _settings(self) -> str:
        """Return repr without addresses: those of plain functions change from run to run."""
        settings = f"{self!r} with {self.feedback!r}, renormalise={self.renormalise!r}"
        return re.sub(r" at 0x[0-9a-fA-F]+", "", settings)

    def _restore(self, state: dict[str, Any]) -> None:
        self._decisions = int(state["decisions"])
        self._initial = state["initial"]
        self._scale = float(state["scale"])
        self.feedback.load_state_dict(state["feedback"])
        self._gain.load_state_dict(state["gain"])
        self._saturated_in_a_row = int(state["saturated_in_a_row"])
        self._warned = set(state["warned"])
        self._anchored = self.schedule if self._needs_no_anchor() else None
        if self._initial is not None:
            self._anchor(self._initial)


def _check_clock(sums: RolloutSums, optimiser_steps: float, drift: float | None) -> None:
    if not optimiser_steps > 0:
        raise ValueError(f"optimiser_steps must be above 0, got {optimiser_steps}")
    if drift is not None and not math.isfinite(drift):
        raise ValueError(f"drift must be finite nats, got {drift}; None if it is not known")
    if sums.total_tokens == 0:
        raise ValueError(
            "the batch has no response token inside its mask, so it has no entropy; check the "
            "mask (true on response tokens)"
        )


def _outcome(pressure: float, weights: Tensor, votes: Tensor, saturated: bool) -> dict[str, float]:
    """Return what was done with the rollouts that carry a vote."""
    kept, count = int((votes & (weights > 0)).sum()), int(votes.sum())
    return {
        "entropy/pressure": pressure,
        "entropy/kept_fraction": kept / count if count else 1.0,
        "entropy/saturated": float(saturated),
        "entropy/empty": float(kept == 0),
    }


def _default_feedback(rule: acceptance.Rule | None, band: float | tuple[float, float]) -> Feedback:
    relay = Relay(band)  # checks the band also where it is not used
    return relay if rule is not None and rule.relay else ProportionalIntegral()
