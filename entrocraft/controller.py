"""The controller: schedule, feedback, effects and selection, once per rollout batch."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from entrocraft import schedules
from entrocraft.effects import LEVELS, BatchMeans, rollout_effects
from entrocraft.feedback import FeedbackSettings, Guard, Pressure, Situation, TargetError
from entrocraft.feedback.guard import GuardResult
from entrocraft.feedback.saturation import Remedies
from entrocraft.feedback.start import far_from_start, start_warnings
from entrocraft.method import (
    Decision,
    EntropyControlWarning,
    Method,
    measured_metrics,
    read_batch,
    without_addresses,
)
from entrocraft.rollouts import RolloutBatch, RolloutStats, StepInfo
from entrocraft.selection import (
    Response,
    ResponseCurve,
    Selection,
    SelectionSettings,
    get_rule,
    rule_input,
)
from entrocraft.selection.sampling import systematic_draw
from entrocraft.state import ControllerState, LastBatch
from entrocraft.typed import check_type

__all__ = ["ControllerState", "EntropyController", "PressureAndScale"]

_SCALE_MEMORY = 0.9
_UNKNOWN = BatchMeans(tokens=1.0, weight=1.0, logprob=0.0)  # before a run's first batch
_VERSION = 3


@dataclass(frozen=True)
class PressureAndScale:
    """What one batch's choice comes down to: enough to select any of its rollouts.

    Attributes:
        pressure: chosen by the feedback.
        scale: usual size of an effect, in the effects' unit.
        means: of the batch; None treats each part as a whole batch.
    """

    pressure: Pressure
    scale: float
    means: BatchMeans | None = None


@dataclass(frozen=True)
class _Batch:
    """One measured batch, and what can be done with it."""

    state: ControllerState
    step: StepInfo
    metrics: dict[str, float]
    response: Response
    means: BatchMeans
    memory: Any


class EntropyController(Method):
    """Keeps policy entropy on a schedule by choosing which rollouts enter the update.

    >>> controller = EntropyController(schedule="linear(0.6, 0.3, 300)")
    >>> controller
    EntropyController(schedule=linear(0.6, 0.3, 300), rule='tilt', effect='sampled', seed=0)

    Args:
        schedule: step -> target entropy (nats per token): a callable, or text for
            `schedules.from_string`. None only observes (with `rule=None`).
        rule: "tilt" (default), "sign" (the paper's Algorithm 1), "switch" (the rule of its public
            code), or None: observe and log, reject nothing.
        effect: effect level, one of `effects.LEVELS`; None takes the rule's own.
        feedback: how target and measurement become pressure.
        selection: how pressure becomes weights.
        remeasure: share of the prompts that are scored once more after an update, to know how far
            it moved the entropy; None takes all of them with the rule tilt, else none.
        extra_pass: whether a trainer that does not score a batch before its update makes one pass
            more to do so. Otherwise TRL decides inside its loss, under a pressure that the batch
            before has set, and verl takes the log-probabilities of its rollout engine.
        drop_rejected: whether rejected rollouts leave TRL's update, which then costs less and has
            the same gradient. It needs to know them before the update, as with `extra_pass`.
        guard: bounds of the entropy beyond which the run stops or its updates pause.
        seed: of the controller's own generator; the global one is never touched.

    Raises:
        ValueError: a setting that cannot be met; the message names the value and the remedy.
    """

    def __init__(
        self,
        schedule: schedules.Schedule | str | float | None,
        rule: str | None = "tilt",
        effect: str | None = None,
        *,
        feedback: FeedbackSettings | None = None,
        selection: SelectionSettings | None = None,
        remeasure: float | None = None,
        extra_pass: bool = False,
        drop_rejected: bool = False,
        guard: Guard | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(schedule)
        for name, value, kind in (
            ("rule", rule, str | None),
            ("effect", effect, str | None),
            ("feedback", feedback, FeedbackSettings | None),
            ("selection", selection, SelectionSettings | None),
            ("remeasure", remeasure, float | None),
            ("extra_pass", extra_pass, bool),
            ("drop_rejected", drop_rejected, bool),
            ("guard", guard, Guard | None),
            ("seed", seed, int),
        ):
            check_type(name, value, kind)
        if schedule is None and rule is not None:
            raise ValueError(
                "a rule needs a schedule, e.g. schedule='linear(initial, 0.3, 300)'; rule=None "
                "only observes"
            )
        self.selection = selection or SelectionSettings()
        self.feedback_settings = feedback or FeedbackSettings()
        self.rule = None if rule is None else get_rule(rule, self.selection)
        self._effect = effect or (self.rule.effect if self.rule else "sampled")
        if self._effect not in LEVELS:
            raise ValueError(f"unknown effect level {effect!r}; choose one of {', '.join(LEVELS)}")
        deadband = self.rule is not None and self.rule.deadband
        if deadband and self.feedback_settings.learning_rate:
            raise ValueError(
                f"feedback.learning_rate needs rule='tilt', got {rule!r}; leave one of them out"
            )
        self.feedback = self.feedback_settings.build(deadband)
        if remeasure is None:
            remeasure = float(self.rule is not None and not deadband)
        if not 0 <= remeasure <= 1:
            raise ValueError(f"remeasure is a share of the prompts, 0 to 1, got {remeasure}")
        self.remeasure = float(remeasure)
        self.guard = guard
        pauses = guard is not None and guard.action == "pause"
        self.sets_learning_rate = self.feedback_settings.learning_rate or pauses
        # the paper's rules compare the batch's own entropy with their band
        self.decides_in_parts = not (extra_pass or drop_rejected or deadband)
        self.extra_pass, self.drop_rejected = extra_pass, drop_rejected
        self._remedies = Remedies(
            tilt=deadband,
            learning_rate=not (deadband or self.feedback_settings.learning_rate),
            constant_reward_groups=not (deadband or self.selection.constant_reward_groups),
        )
        self.seed = int(seed)
        self.state = ControllerState(feedback=self.feedback.start())

    def __repr__(self) -> str:
        return self._described(self.schedule)

    def _described(self, schedule: Any) -> str:
        rule = self.rule and self.rule.name
        return (
            f"EntropyController(schedule={schedule!r}, rule={rule!r}, "
            f"effect={self._effect!r}, seed={self.seed})"
        )

    @property
    def effect(self) -> str | None:
        """Effect level that batches have to serve; None while nothing is steered."""
        return None if self.rule is None else self._effect

    @property
    def initial(self) -> float | None:
        """First measured entropy of the run, nats per token; None before the first batch."""
        return self.state.initial

    def start_warnings(
        self, steps: int | None, rollouts: float, decay: str | None = None
    ) -> tuple[str, ...]:
        """Which settings of a run will keep it off its schedule; see `Method.start_warnings`."""
        if self.rule is None:
            return ()
        schedule = self._target.schedule
        return start_warnings(schedule, steps=steps, rollouts=rollouts, decay=decay)

    def decide(self, batch: RolloutBatch | RolloutStats, step: StepInfo | None = None) -> Decision:
        """Choose the rollouts of one batch; see `Method.decide`."""
        stats, step = read_batch(batch, step)
        return self._remember(*self.update(self.state, stats, step))

    def update(
        self, state: ControllerState, stats: RolloutStats, step: StepInfo
    ) -> tuple[Decision, ControllerState]:
        """Decide on the rollouts of all ranks, as a pure function; return the state after it too.

        Raises:
            ValueError: a batch or a target that makes no sense.
        """
        if self.rule is None:
            return self._observe(state, stats, step)
        batch = self._measure(state, stats, step)
        chosen = self._choose(batch)
        selection, _ = batch.response.select(chosen.pressure.value)
        weights = self._draw(state, selection, batch.response.order)
        return self._conclude(batch, chosen, selection, weights)

    def choose_pressure(
        self, state: ControllerState, stats: RolloutStats, step: StepInfo
    ) -> tuple[PressureAndScale, ControllerState]:
        """First half of `update`: the one choice that is made for a whole batch.

        Raises:
            ValueError: a controller that only observes, or a batch that makes no sense.
        """
        batch = self._measure(state, stats, step)
        chosen = self._choose(batch)
        return chosen, replace(batch.state, scale=chosen.scale, feedback=batch.memory)

    def anticipate(self, state: ControllerState, step: StepInfo) -> PressureAndScale:
        """First half for a batch that is not scored yet, from what the batch before it was like.

        The first batch of a run is kept as it is.
        """
        last = state.last
        if self.rule is None or last is None:
            return PressureAndScale(Pressure(0.0), 0.0, _UNKNOWN)
        pressure, _ = self._plan(state, state.feedback, step, last.measured, last.curve)
        return PressureAndScale(pressure, state.scale, last.means)

    def select(self, stats: RolloutStats, chosen: PressureAndScale) -> Selection:
        """Second half of `update`: keep probabilities of the batch or of any part of it.

        Raises:
            ValueError: a controller that only observes.
        """
        if self.rule is None:
            raise ValueError("rule=None only observes: there is nothing to select by")
        given = rule_input(stats, self._effect, chosen.scale, self.selection, chosen.means)
        return self.rule.select(given, chosen.pressure.value)

    def conclude(
        self,
        state: ControllerState,
        stats: RolloutStats,
        step: StepInfo,
        chosen: PressureAndScale,
        weights: Tensor,
    ) -> tuple[Decision, ControllerState]:
        """Take a batch that was drawn part by part, as a pure function.

        Args:
            state: before the batch.
            stats: rollouts of all parts and ranks.
            step: the batch's position in the run.
            chosen: what `anticipate` chose for it.
            weights: (B,) as drawn.

        Returns:
            The decision as it was made, and the state after it.

        Raises:
            ValueError: a batch or a target that makes no sense.
        """
        if self.rule is None:
            return self._observe(state, stats, step)
        batch = self._measure(state, stats, step)
        self._choose(batch)  # for what it logs
        decision, after = self._conclude(batch, chosen, self.select(stats, chosen), weights)
        last = LastBatch(batch.metrics["entropy/measured"], batch.response.curve, batch.means)
        return decision, replace(after, scale=batch.response.given.scale, last=last)

    # Deciding on a batch whose parts are scored one after another -----------------------------

    def begin(self, step: StepInfo) -> PressureAndScale:
        """Choose the pressure; see `Method.begin`."""
        return self.anticipate(self.state, step)

    def decide_part(
        self, stats: RolloutStats, chosen: PressureAndScale, number: int
    ) -> tuple[Tensor, Tensor]:
        """Draw some rollouts; see `Method.decide_part`."""
        if self.rule is None:
            return torch.ones(len(stats), dtype=torch.float64), stats.advantages
        given = rule_input(stats, self._effect, chosen.scale, self.selection, chosen.means)
        selection = self.rule.select(given, chosen.pressure.value)
        order = torch.argsort(given.effects, stable=True)
        weights = self._draw(self.state, selection, order, number)
        return weights, selection.advantages * weights

    def finish(
        self, stats: RolloutStats, step: StepInfo, chosen: PressureAndScale, weights: Tensor
    ) -> Decision:
        """Take the whole batch; see `Method.finish`."""
        return self._remember(*self.conclude(self.state, stats, step, chosen, weights))

    # Steps of a decision ----------------------------------------------------------------------

    def _remember(self, decision: Decision, state: ControllerState) -> Decision:
        for text in decision.warnings:
            warnings.warn(text, EntropyControlWarning, stacklevel=3)
        self.state = state
        return decision

    def _read(
        self, state: ControllerState, stats: RolloutStats, step: StepInfo
    ) -> tuple[ControllerState, dict[str, float]]:
        """Measured entropy and target; the state knows the run's initial entropy."""
        metrics = measured_metrics(stats)
        if state.initial is None:
            state = replace(state, initial=metrics["entropy/measured"])
            self._target.check(state.initial)
        if (target := self._target.at(step.step, state.initial)) is not None:
            metrics["entropy/target"] = target
        return state, metrics

    def _observe(
        self, state: ControllerState, stats: RolloutStats, step: StepInfo
    ) -> tuple[Decision, ControllerState]:
        """Keep every rollout as it is."""
        state, metrics = self._read(state, stats, step)
        ones = torch.ones(len(stats), dtype=torch.float64)
        metrics |= _outcome(Pressure(0.0), ones, stats.active)
        useful = int(stats.active.sum())
        guarded = self._guarded(state, metrics)
        decision = Decision(ones, ones.clone(), stats.advantages.clone(), metrics, useful)
        after = replace(state, decisions=state.decisions + 1, beyond=guarded.beyond)
        return _with_guard(decision, guarded), after

    def _measure(self, state: ControllerState, stats: RolloutStats, step: StepInfo) -> _Batch:
        """Take the batch's measurement, and see what its rollouts could do."""
        if self.rule is None:
            raise ValueError("rule=None only observes: there is no pressure to choose")
        state, metrics = self._read(state, stats, step)
        means = BatchMeans.of(stats)
        given = rule_input(stats, self._effect, state.scale, self.selection, means)
        given = replace(given, scale=_followed(state.scale, stats, given.effects))
        ones = replace(stats, advantages=torch.ones_like(stats.advantages))
        steps = step.optimizer_steps * step.relative_learning_rate
        unit = steps * rollout_effects(ones, self._effect, means)
        response = Response(self.rule, given, unit, stats.tokens, self.feedback.limit)
        stderr = metrics.get("entropy/measured_stderr", math.inf)
        measured = metrics["entropy/measured"]
        memory = self.feedback.measure(state.feedback, measured, stderr, response.size)
        return _Batch(state, step, metrics, response, means, memory)

    def _choose(self, batch: _Batch) -> PressureAndScale:
        """Ask the feedback for the pressure of a measured batch."""
        measured, curve = batch.metrics["entropy/measured"], batch.response.curve
        pressure, planned = self._plan(batch.state, batch.memory, batch.step, measured, curve)
        batch.metrics.update(planned)
        return PressureAndScale(pressure, batch.response.given.scale, batch.means)

    def _plan(
        self,
        state: ControllerState,
        memory: Any,
        step: StepInfo,
        measured: float,
        curve: ResponseCurve,
    ) -> tuple[Pressure, dict[str, float]]:
        def ahead(steps: int) -> float:
            target = self._target.ahead(step.step, steps, state.initial)
            assert target is not None, "a rule has a schedule, and the first batch anchored it"
            return target

        return self.feedback.plan(memory, Situation(measured, ahead, step, curve))

    def _draw(
        self, state: ControllerState, selection: Selection, order: Tensor, part: int = 0
    ) -> Tensor:
        """Draw the rollouts that are kept: (B,) float64, 0 or 1.

        In the `order` of their effects the draw is balanced in every range of effects: its sum
        stays on plan.
        """
        seed = self.seed * 1_000_003 + state.decisions + part * 7_368_787
        generator = torch.Generator().manual_seed(seed % 2**63)
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        return systematic_draw(selection.probabilities, uniform, order).double()

    def _conclude(
        self, batch: _Batch, chosen: PressureAndScale, selection: Selection, weights: Tensor
    ) -> tuple[Decision, ControllerState]:
        """Return the decision of given weights, and the state after it."""
        state, response, metrics = batch.state, batch.response, batch.metrics
        pressure, memory, joining = chosen.pressure, batch.memory, response.joining
        active = (selection.advantages != 0) & (response.tokens > 0)
        counted = active if joining is None else active & ~joining
        metrics |= _outcome(pressure, weights, counted)
        metrics["entropy/shortfall"] = pressure.shortfall
        if joining is not None:
            metrics["entropy/constant_reward_used"] = float((joining & (weights > 0)).sum())
        kept = response.kept(selection, weights)
        effects = float(kept[0].sum()), float(kept[1].sum())
        guarded = self._guarded(state, metrics, sum(effects))
        if memory is not None:
            metrics |= memory.report(effects, batch.step)
            made = ((0.0, 0.0), 0.0) if guarded.pause else (effects, float(kept.norm()))
            memory = memory.predict(*made, batch.step)
        factor = self.feedback_settings.learning_rate_factor(
            state.learning_rate_factor, pressure, batch.step.optimizer_steps
        )
        if self.sets_learning_rate:
            metrics["entropy/learning_rate_factor"] = 0.0 if guarded.pause else factor
        metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        useful = int((active & (weights > 0)).sum())
        monitor, texts = state.monitor.check(metrics, useful, self._remedies, batch.step)
        if state.decisions == 0:
            stderr = metrics.get("entropy/measured_stderr", math.nan)
            far = far_from_start(metrics["entropy/target"], metrics["entropy/measured"], stderr)
            texts = texts if far is None else (far, *texts)
        decision = Decision(
            weights,
            selection.probabilities,
            selection.advantages * weights,
            metrics,
            useful,
            learning_rate_factor=factor,
            warnings=texts,
            effects=response.unit * selection.advantages,
        )
        after = replace(
            state,
            decisions=state.decisions + 1,
            scale=chosen.scale,
            feedback=memory,
            monitor=monitor,
            learning_rate_factor=factor,
            last=None,
            beyond=guarded.beyond,
        )
        return _with_guard(decision, guarded), after

    def _guarded(
        self, state: ControllerState, metrics: dict[str, float], change: float = 0.0
    ) -> GuardResult:
        """Look whether the entropy has been beyond the guard's bounds for long enough."""
        if self.guard is None or state.initial is None:
            return GuardResult(state.beyond)
        return self.guard.check(metrics["entropy/measured"], state.initial, state.beyond, change)

    def post_update(self, change: float, stderr: float, trained: bool = True) -> None:
        """Take the measured change of the entropy by the last update; see `Method.post_update`."""
        if (memory := self.state.feedback) is not None:
            memory = memory.update_change(change, stderr, trained)
            self.state = replace(self.state, feedback=memory)

    # State ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs to decide as if never interrupted, for JSON."""
        own = {"version": _VERSION, "settings": self._settings(), **self.state.as_dict()}
        return own | self._replacement()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: no state of this class and rule, or one whose start makes the schedule
                impossible; nothing changed.
        """
        version = state.get("version") if isinstance(state, dict) else None
        if version not in (2, _VERSION):
            raise ValueError(
                f"not a controller state of version {_VERSION}: {str(state)[:200]}; was the "
                "checkpoint written by another version of entrocraft?"
            )
        try:
            remembers = self.feedback.start() is not None
            found = ControllerState.from_dict(state, remembers, self.feedback.limit)
            target = self._target_of(state)
            target.check(found.initial)
        except TargetError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            message = f"the checkpoint's state does not fit {self!r} ({error!r})"
            raise ValueError(f"{message}; resume with the rule that wrote it") from error
        written, settings = state.get("settings"), self._settings()
        message = ""
        if version == 2:
            message = "the checkpoint is of entrocraft 0.1.0; its state is read for one release"
            if f"effect={self._effect!r}" not in str(written):
                message += (
                    f"; it was written at another effect level than {self._effect!r}, whose scale "
                    "and gains have another unit: give effect='...' (the default was 'logit')"
                )
        elif written != settings:
            message = (
                f"the checkpoint's controller was {written}, this one is {settings}; its state is "
                "used with the new settings"
            )
        if message:
            warnings.warn(message, EntropyControlWarning, stacklevel=2)
        self.state, self._target, self.schedule = found, target, target.schedule

    def _settings(self) -> str:
        """Return all settings as text, with the schedule that the run was given."""
        sections = (
            f"{self.feedback_settings!r}, {self.selection!r}, "
            f"remeasure={self.remeasure}, extra_pass={self.extra_pass}, "
            f"drop_rejected={self.drop_rejected}, guard={self.guard!r}"
        )
        return without_addresses(f"{self._described(self._first_schedule)} with {sections}")


def _with_guard(decision: Decision, guarded: GuardResult) -> Decision:
    """Stop, or pause the update, where the guard says so."""
    if guarded.stop:
        return replace(decision, stop=guarded.text)
    if not guarded.pause or guarded.text is None:
        return decision
    warned = (*decision.warnings, guarded.text)
    return replace(decision, learning_rate_factor=0.0, warnings=warned)


def _followed(scale: float, stats: RolloutStats, effects: Tensor) -> float:
    """Slow average of the mean size of the effects of active, or else of joining, rollouts."""
    counted = effects[stats.active] if bool(stats.active.any()) else effects[effects != 0]
    size = float(counted.abs().mean()) if len(counted) else 0.0
    if not math.isfinite(size) or size == 0:
        return scale
    memory = _SCALE_MEMORY if scale > 0 else 0.0
    return memory * scale + (1 - memory) * size


def _outcome(pressure: Pressure, weights: Tensor, active: Tensor) -> dict[str, float]:
    """Return what was done with the active rollouts."""
    kept, count = int((active & (weights > 0)).sum()), int(active.sum())
    return {
        "entropy/pressure": pressure.value,
        "entropy/kept_fraction": kept / count if count else 0.0,
        "entropy/saturated": float(pressure.saturated),
        "entropy/empty": float(kept == 0),
    }
