"""Method: the base class of the controller and of every baseline, and what a method decides."""

import copy
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from entrocraft import schedules
from entrocraft.feedback.start import start_warnings
from entrocraft.feedback.target import Target, TargetError
from entrocraft.rollouts import RolloutBatch, RolloutStats, StepInfo, TokenBatch
from entrocraft.storage import read_number
from entrocraft.typed import is_number

__all__ = [
    "Decision",
    "EntropyControlWarning",
    "ExtraRollouts",
    "Measurement",
    "Method",
    "checked",
    "number",
]


class EntropyControlWarning(UserWarning):
    """Entropy control cannot do, or may miss, what was asked."""


@dataclass(frozen=True)
class ExtraRollouts:
    """More rollouts for a part of the batch's prompts, sampled at another temperature.

    Those that beat their group by more than `least_advantage` take the places of the batch's first
    rollouts and are trained on with `advantage`.

    Attributes:
        share: part of the batch's prompts, in (0, 1]; the first ones.
        temperature: sampling temperature.
        rows: rollouts to take over, at most.
        taken: part of those, in [0, 1], that is taken over.
        least_advantage: what the estimator's advantage has to exceed.
    """

    share: float
    temperature: float
    rows: int
    taken: float = 1.0
    least_advantage: float = 0.0
    advantage: float = 1.0


@dataclass(frozen=True)
class Decision:
    """What enters the update.

    Attributes:
        weights: (B,) float64, 0 = rejected; multiply into the advantages.
        probabilities: (B,) float64, keep probabilities in [0, 1].
        advantages: (B,) float64, ready to train on: the batch's times `weights`, or those
            that the method puts in their place.
        metrics: the keys of docs/metrics.md.
        useful: rollouts that carry a gradient: kept, with tokens and an advantage not 0.
        settings: options of the trainer, by its own names, for the updates of this batch.
        learning_rate_factor: on the learning rate of the updates of this batch.
        stop: why the run is to end; None if it is to continue.
        extra: rollouts that the adapter is to add to this batch.
        warnings: texts that the user is to see.
        effects: (B,) float64, entropy change that each rollout is predicted to make if it is kept,
            over all updates of the batch, in the unit of the effect level; None if not predicted.
    """

    weights: Tensor
    probabilities: Tensor
    advantages: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    useful: int = 0
    settings: dict[str, float] = field(default_factory=dict)
    extra: ExtraRollouts | None = None
    learning_rate_factor: float = 1.0
    stop: str | None = None
    warnings: tuple[str, ...] = ()
    effects: Tensor | None = None


@dataclass(frozen=True)
class Measurement:
    """Entropy of one batch and its target, nats per token; None for a method without a target."""

    step: int
    entropy: float
    target: float | None

    @property
    def error(self) -> float:
        """Measured minus target."""
        assert self.target is not None, "only a method that follows a target asks for the error"
        return self.entropy - self.target


def number(default: float | None, *, sets: str | None = None, **bounds: float | str) -> Any:
    """Declare a numeric option of a method, a keyword of its constructor.

    Args:
        default: of the option.
        sets: option of the trainer that a `Preset` hands the number on to.
        bounds: as for `checked`; the name of another option stands for its value.
    """
    return field(default=default, kw_only=True, metadata={"sets": sets, "bounds": bounds})


@dataclass(eq=False)
class Method:
    """Turns a rollout batch into advantages; what an adapter hosts.

    All that an adapter may need is declared here, with a default. As it stands a method observes
    and changes nothing; a baseline overrides the hooks that it needs. One with options of its own
    is a dataclass again and declares each as a `number`.

    Args:
        schedule: target entropy as for `EntropyController`; a reference in the log for methods
            that follow none.

    Attributes:
        name: in settings and logs.
        follows: whether the method steers entropy toward a target.
        own_target: the target without a schedule: nats per token, or text of a schedule.
        coefficient: the main option, which a fair comparison tries several values of.
        losses: TRL's loss types under which the method is what its source says; None for all.
        needs_updates: whether all that the method does depends on how far the policy has moved
            since the batch was sampled, so that with one update per batch it is plain RL.
        token_scope: when `reweigh` is called: "batch": once, on the rollouts of a batch before the
            first update; "update": on each micro-batch on its way into the loss; None: never.
        uses_bonus: whether `bonus_entropy` takes the place of the entropy in the trainer's bonus.
        samples_more: whether `extra` may ask for more rollouts.
        memory: names, without their underscore, of the numbers that a resumed run needs.
        sets_learning_rate: whether a decision may have a `learning_rate_factor` other than 1.
        decides_in_parts: whether `begin`, `decide_part` and `finish` can stand in for `decide`.
        extra_pass: whether a batch that the trainer does not score before its update is scored in
            a pass of its own all the same.
        drop_rejected: whether rollouts without a gradient leave the trainer's update.
        remeasure: share of the prompts, in [0, 1], that the adapter scores once more after the
            batch's last update and reports to `post_update`.
        hosted: whether the method has been in a trainer before.
        seed: of what the method, or the adapter on its behalf, chooses at random.
    """

    name: ClassVar[str] = ""
    follows: ClassVar[bool] = False
    own_target: ClassVar[float | str | None] = None
    coefficient: ClassVar[str | None] = None
    losses: ClassVar[tuple[str, ...] | None] = None
    needs_updates: ClassVar[bool] = False
    token_scope: ClassVar[str | None] = None
    uses_bonus: ClassVar[bool] = False
    samples_more: ClassVar[bool] = False
    memory: ClassVar[tuple[str, ...]] = ()
    sets_learning_rate = False
    decides_in_parts = False
    extra_pass = False
    drop_rejected = False
    remeasure = 0.0  # not annotated, and so no arguments of the constructor
    hosted = False
    seed = 0

    schedule: schedules.Schedule | str | float | None = None
    _initial: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for option in fields(self):
            if "bounds" in option.metadata:
                bounds = {
                    kind: getattr(self, bound) if isinstance(bound, str) else bound
                    for kind, bound in option.metadata["bounds"].items()
                }
                checked(self, option.name, getattr(self, option.name), **bounds)
        self._target = Target(self.own_target if self.schedule is None else self.schedule)
        self.schedule = self._first_schedule = self._target.schedule

    @property
    def initial(self) -> float | None:
        """First measured entropy of the run, nats per token; None before the first batch."""
        return self._initial

    @property
    def effect(self) -> str | None:
        """Effect level whose token sensitivities the adapter has to provide, or None."""
        return None

    def prepare(self, *, vocabulary: int | None = None, steps: int | None = None) -> None:
        """Check the schedule before any update.

        Args:
            vocabulary: number of tokens V; no target can be above log(V).
            steps: optimizer steps of the run; every target up to there is checked, as soon as the
                initial entropy is known if the schedule is relative to it.

        Raises:
            ValueError: a target that is negative, not finite or above log(V).
        """
        self._target.prepare(vocabulary, steps, self.initial)

    def start_warnings(
        self, steps: int | None, rollouts: float, decay: str | None = None
    ) -> tuple[str, ...]:
        """Which settings of a run will keep entropy from following the schedule.

        Args:
            steps: optimizer steps of the run.
            rollouts: that each of them trains on, over all processes.
            decay: the trainer's setting by which the learning rate falls toward 0; None: it does
                not fall.
        """
        schedule = self._target.schedule if self.follows else None
        return start_warnings(schedule, steps=steps, steered=False)

    def target(self, step: int) -> float | None:
        """Target entropy at an optimizer step, nats per token; None while it is not known."""
        return self._target.at(step, self.initial)

    def replace_schedule(self, schedule: str) -> None:
        """Follow another schedule from the next batch on; checkpoints keep it.

        Args:
            schedule: text for `schedules.from_string`, indexed by the run's optimizer steps.

        Raises:
            ValueError: no schedule, or a target that `prepare` would refuse; nothing was changed.
        """
        target = self._target.replaced(schedules.from_string(schedule))
        target.check(self.initial)
        self._target, self.schedule = target, target.schedule

    def decide(self, batch: RolloutBatch | RolloutStats, step: StepInfo | None = None) -> Decision:
        """Decide on one rollout batch.

        Args:
            batch: a `RolloutBatch`, or the `RolloutStats` of one, gathered over ranks.
            step: the batch's position in the run; needed with `RolloutStats`.

        Raises:
            ValueError: a batch or a target that makes no sense; nothing was changed.
        """
        stats, step = read_batch(batch, step)
        after = copy.copy(self)  # a decision that fails leaves no trace
        decision = after._decide(stats, step)
        vars(self).update(vars(after))
        return decision

    def _decide(self, stats: RolloutStats, step: StepInfo) -> Decision:
        metrics = measured_metrics(stats)
        if self._initial is None:
            self._initial = metrics["entropy/measured"]
            self._target.check(self._initial)
        seen = Measurement(step.step, metrics["entropy/measured"], self.target(step.step))
        if seen.target is not None:
            metrics["entropy/target"] = seen.target
        advantages = self.advantages(stats, seen)
        if not bool(torch.isfinite(advantages).all()):
            raise ValueError(
                f"the method {self.name!r} makes advantages of the rewards that are not finite; "
                "scale the rewards to a range such as 0 to 1"
            )
        trained = (advantages != 0) & (stats.tokens > 0)
        count, kept = int(stats.active.sum()), int((stats.active & trained).sum())
        metrics["entropy/kept_fraction"] = kept / count if count else 0.0
        metrics["entropy/empty"] = float(not bool(trained.any()))
        settings, extra = self.settings(seen), self.extra(seen)
        metrics |= self.report()
        weights = (trained | (stats.advantages == 0)).double()
        useful = int(trained.sum())
        return Decision(weights, weights.clone(), advantages, metrics, useful, settings, extra)

    # Deciding on a batch whose parts are scored one after another ---------------------------------

    def begin(self, step: StepInfo) -> Any:
        """Choose for a batch that is not scored yet; what is returned goes to the calls below."""
        raise NotImplementedError

    def decide_part(self, stats: RolloutStats, chosen: Any, number: int) -> tuple[Tensor, Tensor]:
        """Weights (b,) and advantages (b,) of some of the batch's rollouts.

        Args:
            stats: of these rollouts.
            chosen: what `begin` returned.
            number: of the part; it seeds the draw.
        """
        raise NotImplementedError

    def finish(self, stats: RolloutStats, step: StepInfo, chosen: Any, weights: Tensor) -> Decision:
        """Take the whole batch, of all parts and processes, with the weights as drawn."""
        raise NotImplementedError

    def post_update(self, change: float, stderr: float, trained: bool = True) -> None:
        """Take the measured change of the entropy by the last batch's update, if `remeasure`.

        Args:
            change: nats per token.
            stderr: its standard error; not finite if unknown.
            trained: whether it was measured on prompts that were trained on.
        """

    # Hooks of baselines -----------------------------------------------------------------------

    @property
    def trainer_options(self) -> Mapping[str, Any]:
        """Options of the trainer, by TRL's names; they hold for the whole run."""
        return {}

    def advantages(self, stats: RolloutStats, seen: Measurement) -> Tensor:
        """(B,) float64 advantages to train on."""
        return stats.advantages.clone()

    def settings(self, seen: Measurement) -> dict[str, float]:
        """Options of the trainer for the updates of this batch."""
        return {}

    def extra(self, seen: Measurement) -> ExtraRollouts | None:
        """Rollouts that are to join this batch."""
        return None

    def reweigh(self, tokens: TokenBatch) -> Tensor:
        """(b, T) advantages of the tokens.

        The trainer's loss multiplies them by the importance ratio, so that a token adds
        ``-A_t ratio_t grad log p_t`` to the gradient; whatever gradient a method asks for can be
        written as such an A_t.
        """
        raise NotImplementedError

    def bonus_entropy(self, logits: Tensor) -> Tensor:
        """(n, V) logits at the sampling temperature -> (n,) values for the entropy bonus, nats."""
        raise NotImplementedError

    def stepped(self, bonus: float) -> dict[str, float]:
        """Take an optimizer step's mean `bonus_entropy`; return options of the trainer."""
        return {}

    def report(self) -> dict[str, float]:
        """Numbers of the method's own for the log, under ``entropy/``."""
        return {}

    # State ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, JSON-serializable."""
        own = {key: getattr(self, f"_{key}") for key in ("initial", *self.memory)}
        return {"version": 1, "method": self.name} | own | self._replacement()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: not a state of this method; nothing was changed.
        """
        if not isinstance(state, dict) or state.get("version") != 1:
            raise ValueError(
                f"not a state of the method {self.name!r}: {str(state)[:200]}; was the checkpoint "
                "written by another method or version of entrocraft?"
            )
        if state.get("method") != self.name:
            raise ValueError(
                f"the checkpoint was written by the method {state.get('method')!r}, not by "
                f"{self.name!r}; resume with the method that wrote it"
            )
        after = copy.copy(self)
        try:
            if "goal" in state:  # written by entrocraft 0.1.0
                memory = state.get("memory") or {}
                state = {**state, **memory, "initial": state["goal"]["initial"]}
            after._load(state)
            after._target = after._target_of(state)
            after.schedule = after._target.schedule
            after._target.check(after._initial)
        except TargetError:
            raise
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"the checkpoint's state does not fit the method {self.name!r} ({error!r})"
            ) from error
        vars(self).update(vars(after))

    def _replacement(self) -> dict[str, Any]:
        """Part of the state: the schedule that has replaced the first one, and which that was."""
        if self.schedule is self._first_schedule:
            return {}
        first, now = without_addresses(repr(self._first_schedule)), repr(self.schedule)
        return {"schedule": {"first": first, "now": now}}

    def _target_of(self, state: dict[str, Any]) -> Target:
        """Return the target that a state asks for, not checked yet.

        A run that was given another first schedule than the one that was replaced follows that.
        """
        found, first = state.get("schedule"), without_addresses(repr(self._first_schedule))
        if found is None:
            return self._target.replaced(self._first_schedule)
        if found["first"] == first:
            return self._target.replaced(schedules.from_string(found["now"]))
        warnings.warn(
            f"the checkpoint's run had its schedule {found['first']} replaced by {found['now']}; "
            f"this one was given {first} and follows that",
            EntropyControlWarning,
            stacklevel=3,
        )
        return self._target.replaced(self._first_schedule)

    def _load(self, state: dict[str, Any]) -> None:
        """Set what `state_dict` wrote; the attribute of the class tells the type of a number."""
        for key in ("initial", *self.memory):
            start = getattr(type(self), f"_{key}")
            value = None
            if state[key] is not None or start is not None:
                value = read_number(state, key, int if isinstance(start, int) else float)
            setattr(self, f"_{key}", value)


def without_addresses(text: str) -> str:
    """Return a repr without addresses: those of plain functions change from run to run."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def read_batch(
    batch: RolloutBatch | RolloutStats, step: StepInfo | None
) -> tuple[RolloutStats, StepInfo]:
    """Return per-rollout sums and the position in the run.

    Raises:
        ValueError: `RolloutStats` without a position.
    """
    if isinstance(batch, RolloutBatch):
        return batch.stats(), step or batch.step_info()
    if step is None:
        raise ValueError("RolloutStats do not know their place in the run; give step=StepInfo(...)")
    return batch, step


def measured_metrics(stats: RolloutStats) -> dict[str, float]:
    """Measured entropy and, where it is known, its standard error, nats per token."""
    metrics = {"entropy/measured": stats.mean_entropy()}
    if math.isfinite(stderr := stats.entropy_stderr()):
        metrics["entropy/measured_stderr"] = stderr
    return metrics


def checked(
    owner: Method,
    name: str,
    value: float,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
) -> float:
    """Return a number of a method's configuration.

    Raises:
        ValueError: it is not finite, outside [low, high], or not above `above`.
    """
    if is_number(value) and low <= value <= high and value > above:
        return value
    bounds = {"at least": low, "above": above, "at most": high}
    limits = [f"{side} {bound:g}" for side, bound in bounds.items() if math.isfinite(bound)]
    text = f"{owner.name}: {name} is {value!r}; use a finite number {' and '.join(limits)}"
    raise ValueError(text.rstrip())
