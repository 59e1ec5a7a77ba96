"""The controller: schedule, feedback, effects and selection, once per rollout batch."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from entrocraft import schedules
from entrocraft.effects import LEVELS, BatchMeans, rollout_effects
from entrocraft.feedback import FeedbackSettings, Pressure, Situation, TargetError
from entrocraft.feedback.filter import EntropyFilter
from entrocraft.feedback.saturation import SaturationMonitor
from entrocraft.method import Decision, EntropyControlWarning, Method, measured_metrics, read_batch
from entrocraft.rollouts import RolloutBatch, RolloutStats, StepInfo
from entrocraft.selection import Response, Selection, SelectionSettings, get_rule, rule_input
from entrocraft.selection.sampling import systematic_draw

__all__ = ["ControllerState", "EntropyController", "PressureAndScale"]

_SCALE_MEMORY = 0.9
_VERSION = 3


@dataclass(frozen=True)
class ControllerState:
    """All that a controller remembers; never changed in place.

    Attributes:
        decisions: batches decided on; the draw depends on it.
        initial: first measured entropy, nats per token; None before the first batch.
        scale: slow average of the effects' mean size.
        feedback: memory of the feedback: an `EntropyFilter`, or None if it has none.
        monitor: what the saturation monitor has seen and said.
    """

    decisions: int = 0
    initial: float | None = None
    scale: float = 0.0
    feedback: Any = None
    monitor: SaturationMonitor = field(default_factory=SaturationMonitor)


@dataclass(frozen=True)
class PressureAndScale:
    """What one batch's choice comes down to: enough to select any of its rollouts.

    Attributes:
        pressure: chosen by the feedback.
        scale: usual size of an effect, in the effects' unit.
        means: of the batch; None with which each part is taken for a whole.
    """

    pressure: Pressure
    scale: float
    means: BatchMeans | None = None


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
        seed: int = 0,
    ) -> None:
        super().__init__(schedule)
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
        self.feedback = self.feedback_settings.build(deadband)
        if remeasure is None:
            remeasure = float(self.rule is not None and not deadband)
        if not (isinstance(remeasure, (int, float)) and 0 <= remeasure <= 1):
            raise ValueError(f"remeasure is a share of the prompts, 0 to 1, got {remeasure}")
        self.remeasure = float(remeasure)
        self.seed = int(seed)
        self.state = ControllerState(feedback=self.feedback.start())

    def __repr__(self) -> str:
        rule = self.rule and self.rule.name
        return (
            f"EntropyController(schedule={self.schedule!r}, rule={rule!r}, "
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

    def decide(self, batch: RolloutBatch | RolloutStats, step: StepInfo | None = None) -> Decision:
        """Choose the rollouts of one batch; see `Method.decide`."""
        stats, step = read_batch(batch, step)
        decision, state = self.update(self.state, stats, step)
        for text in decision.warnings:
            warnings.warn(text, EntropyControlWarning, stacklevel=2)
        self.state = state
        return decision

    def update(
        self, state: ControllerState, stats: RolloutStats, step: StepInfo
    ) -> tuple[Decision, ControllerState]:
        """Decide on the rollouts of all ranks, as a pure function; return the state after it too.

        Raises:
            ValueError: a batch or a target that makes no sense.
        """
        metrics, state = self._measured(state, stats, step)
        after = replace(state, decisions=state.decisions + 1)
        if self.rule is None:
            ones = torch.ones(len(stats), dtype=torch.float64)
            metrics |= _outcome(Pressure(0.0), ones, stats.active)
            useful = int(stats.active.sum())
            return Decision(ones, ones.clone(), stats.advantages.clone(), metrics, useful), after
        chosen, response, memory, planned = self._choose(state, stats, step, metrics)
        selection, active = response.select(chosen.pressure.value)
        probabilities = selection.probabilities
        weights = self._draw(state, probabilities, response.given.effects)
        joining = response.joining
        counted = active if joining is None else active & ~joining
        metrics |= planned | _outcome(chosen.pressure, weights, counted)
        metrics["entropy/shortfall"] = chosen.pressure.shortfall
        if joining is not None:
            metrics["entropy/constant_reward_used"] = float((joining & (weights > 0)).sum())
        if memory is not None:
            kept = response.kept(selection, weights)
            effects = float(kept[0].sum()), float(kept[1].sum())
            metrics |= memory.report(effects, step)
            memory = memory.predict(effects, float(kept.norm()), step)
        metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        useful = int((active & (weights > 0)).sum())
        monitor, texts = state.monitor.check(metrics, useful, self._remedies())
        advantages = selection.advantages * weights
        decision = Decision(weights, probabilities, advantages, metrics, useful, warnings=texts)
        return decision, replace(after, scale=chosen.scale, feedback=memory, monitor=monitor)

    def choose_pressure(
        self, state: ControllerState, stats: RolloutStats, step: StepInfo
    ) -> tuple[PressureAndScale, ControllerState]:
        """First half of `update`: the one choice that is made for a whole batch.

        Raises:
            ValueError: a controller that only observes, or a batch that makes no sense.
        """
        metrics, state = self._measured(state, stats, step)
        chosen, _, memory, _ = self._choose(state, stats, step, metrics)
        return chosen, replace(state, scale=chosen.scale, feedback=memory)

    def select(self, stats: RolloutStats, chosen: PressureAndScale) -> Selection:
        """Second half of `update`: keep probabilities of the batch or of any part of it.

        Raises:
            ValueError: a controller that only observes.
        """
        if self.rule is None:
            raise ValueError("rule=None only observes: there is nothing to select by")
        given = rule_input(stats, self._effect, chosen.scale, self.selection, chosen.means)
        return self.rule.select(given, chosen.pressure.value)

    def _measured(
        self, state: ControllerState, stats: RolloutStats, step: StepInfo
    ) -> tuple[dict[str, float], ControllerState]:
        """Measured entropy and target; the state knows the run's initial entropy."""
        metrics = measured_metrics(stats)
        if state.initial is None:
            state = replace(state, initial=metrics["entropy/measured"])
            self._target.check(state.initial)
        if (target := self._target.at(step.step, state.initial)) is not None:
            metrics["entropy/target"] = target
        return metrics, state

    def _choose(
        self, state: ControllerState, stats: RolloutStats, step: StepInfo, metrics: dict[str, float]
    ) -> tuple[PressureAndScale, Response, EntropyFilter | None, dict[str, float]]:
        """Ask the feedback for the pressure of a batch."""
        if self.rule is None:
            raise ValueError("rule=None only observes: there is no pressure to choose")
        means = BatchMeans.of(stats)
        given = rule_input(stats, self._effect, state.scale, self.selection, means)
        scale = _followed(state.scale, stats, given.effects)
        ones = replace(stats, advantages=torch.ones_like(stats.advantages))
        unit = step.optimizer_steps * rollout_effects(ones, self._effect, means)
        given = replace(given, scale=scale)
        response = Response(self.rule, given, unit, stats.tokens, self.feedback.limit)

        def ahead(steps: int) -> float:
            target = self._target.ahead(step.step, steps, state.initial)
            assert target is not None, "a rule has a schedule, and the first batch anchored it"
            return target

        stderr = metrics.get("entropy/measured_stderr", math.inf)
        situation = Situation(metrics["entropy/measured"], stderr, ahead, step, response)
        pressure, memory, planned = self.feedback.choose(state.feedback, situation)
        return PressureAndScale(pressure, scale, means), response, memory, planned

    def _draw(self, state: ControllerState, probabilities: Tensor, effects: Tensor) -> Tensor:
        """Draw the rollouts that are kept: (B,) float64, 0 or 1."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + state.decisions) % 2**63)
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        # ordered by effect, the draw is balanced in every range of effects: its sum stays on plan
        order = torch.argsort(effects, stable=True)
        return systematic_draw(probabilities, uniform, order).double()

    def post_update(self, change: float, stderr: float, trained: bool = True) -> None:
        """Take the measured change of the entropy by the last update; see `Method.post_update`."""
        if (memory := self.state.feedback) is not None:
            memory = memory.update_change(change, stderr, trained)
            self.state = replace(self.state, feedback=memory)

    def _remedies(self) -> list[str]:
        """What a user can change where rejection is at its limit."""
        remedies = ["make it slower", "give more rollouts per batch", "raise the learning rate"]
        if self.rule is not None and self.rule.deadband:
            remedies.append("use rule='tilt'")
        elif not self.selection.constant_reward_groups:
            remedies.append(
                "let all-correct and all-wrong groups join "
                "(selection=SelectionSettings(constant_reward_groups=True))"
            )
        return remedies

    # State ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs to decide as if never interrupted, for JSON."""
        state = self.state
        return {
            "version": _VERSION,
            "settings": self._settings(),
            "decisions": state.decisions,
            "initial": state.initial,
            "scale": state.scale,
            "feedback": {} if state.feedback is None else state.feedback.state_dict(),
            "monitor": {**asdict(state.monitor), "warned": list(state.monitor.warned)},
        }

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
            found = self._read(_of_version_2(state) if version == 2 else state)
            self._target.check(found.initial)
        except TargetError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
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
        self.state = found

    def _read(self, state: dict[str, Any]) -> ControllerState:
        """Make a state from its JSON form."""
        initial, scale = state["initial"], float(state["scale"])
        initial = None if initial is None else float(initial)
        if not (0 <= scale < math.inf) or not (initial is None or math.isfinite(initial)):
            raise ValueError(f"scale {scale} and initial {initial} must be finite")
        decisions, monitor, memory = int(state["decisions"]), state["monitor"], state["feedback"]
        in_a_row, warned = int(monitor["saturated_in_a_row"]), monitor["warned"]
        if decisions < 0 or not isinstance(warned, (list, tuple)):
            raise ValueError(f"{decisions} decisions and warnings {warned!r}")
        return ControllerState(
            decisions,
            initial,
            scale,
            None if self.feedback.start() is None else EntropyFilter.from_state_dict(memory),
            SaturationMonitor(in_a_row, tuple(map(str, warned))),
        )

    def _settings(self) -> str:
        """Return repr without addresses: those of plain functions change from run to run."""
        sections = f"{self.feedback_settings!r}, {self.selection!r}, remeasure={self.remeasure}"
        return re.sub(r" at 0x[0-9a-fA-F]+", "", f"{self!r} with {sections}")


def _of_version_2(state: dict[str, Any]) -> dict[str, Any]:
    """Read the state that entrocraft 0.1.0 wrote."""
    monitor = {key: state[key] for key in ("saturated_in_a_row", "warned")}
    renamed = {"initial": state["goal"]["initial"], "feedback": state["observer"]}
    return {**state, **renamed, "monitor": monitor}


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
        "entropy/kept_fraction": kept / count if count else 1.0,
        "entropy/saturated": float(pressure.saturated),
        "entropy/empty": float(kept == 0),
    }
