"""The loop: schedule, feedback, effects and acceptance, once per rollout batch."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from entrocraft import effects, schedules
from entrocraft.feedback import Deadband, Feedback, Planner, Situation, get_feedback
from entrocraft.feedback.filter import EntropyFilter
from entrocraft.feedback.saturation import SaturationMonitor
from entrocraft.feedback.target import Target, TargetError
from entrocraft.method import Decision, EntropyControlWarning, StepInfo
from entrocraft.rollouts import RolloutBatch, RolloutStats
from entrocraft.selection import rules as acceptance
from entrocraft.selection.response import Response, constant_reward_groups
from entrocraft.selection.sampling import Sampling

__all__ = ["EntropyController"]

_SCALE_MEMORY = 0.9


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
        feedback: the loop: "plan" (default), "pi", or a `feedback.Feedback`; band rules take
            `feedback.Deadband`.
        constant_reward_groups: let rollouts of groups in which all succeeded or all failed, whose
            advantage is 0, join with raw rewards (+1, -1) when they push the wanted way: more
            authority. Needs rule "tilt" and `RolloutBatch.rewards` and `.group`.
        correction: kappa in [0, 1], importance weights ``a ** -kappa`` for what is kept with
            probability a; see `drawing.Sampling`.
        draw: False weighs every rollout by its keep probability instead of drawing.
        effective_batch: rollouts with a vote to keep at most, None for all that are left; offer
            more rollouts than that to hold the number constant.
        renormalize: "none", "rollouts" or "tokens"; see `drawing.Sampling`.
        remeasure: score each batch once more after its update, to know how far it moved the entropy
            without the noise of new prompts: one forward pass a batch. None does so if the feedback
            is "plan".
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
        feedback: Feedback | str | None = None,
        constant_reward_groups: bool = False,
        correction: float = 0.0,
        draw: bool = True,
        effective_batch: int | None = None,
        renormalize: str = "none",
        remeasure: bool | None = None,
        seed: int = 0,
    ) -> None:
        self._target = Target(schedule)
        if schedule is None and rule is not None:
            raise ValueError(
                "a rule needs a schedule, e.g. schedule='linear(initial, 0.3, 300)'; rule=None "
                "only observes"
            )
        self.rule = None if rule is None else acceptance.get_rule(rule)
        if constant_reward_groups and not isinstance(self.rule, acceptance.Tilt):
            raise ValueError(
                f"constant_reward_groups needs rule='tilt', got {rule!r}; 'switch' uses such groups by "
                "itself"
            )
        self._effect = effect or (self.rule.effect if self.rule else "logit")
        if self._effect not in effects.LEVELS:
            raise ValueError(
                f"unknown effect level {effect!r}; choose one of {', '.join(effects.LEVELS)}"
            )
        self.feedback = _feedback_for(self.rule, band, feedback)
        self.observer = EntropyFilter()
        self.constant_reward_groups = constant_reward_groups
        self.drawing = Sampling(draw, correction, effective_batch, renormalize)
        plans = isinstance(self.feedback, Planner)
        self.remeasure = (self.rule is not None and plans) if remeasure is None else remeasure
        self.seed = int(seed)
        self._decisions = 0
        self._scale = 0.0
        self.alarm = SaturationMonitor()

    def __repr__(self) -> str:
        rule = None if self.rule is None else self.rule.name
        return (
            f"EntropyController(schedule={self._target.schedule!r}, rule={rule!r}, "
            f"effect={self._effect!r}, seed={self.seed})"
        )

    @property
    def schedule(self) -> Any:
        """Step -> target entropy, nats per token; None only observes."""
        return self._target.schedule

    @property
    def effect(self) -> str | None:
        """Effect level that batches have to serve; None while nothing is steered."""
        return None if self.rule is None else self._effect

    def prepare(self, *, vocabulary: int | None = None, steps: int | None = None) -> None:
        """Check the schedule against the vocabulary and the run's length, before any update.

        Args:
            vocabulary: number of tokens V; no target can be above log(V).
            steps: optimizer steps of the run; every target up to there is checked, as soon as the
                initial entropy is known if the schedule is relative to it.

        Raises:
            ValueError: a target that is negative, not finite or above log(V).
        """
        self._target.prepare(vocabulary, steps)

    def decide(self, batch: RolloutBatch | RolloutStats, **clock: Any) -> Decision:
        """Choose the rollouts of one batch.

        Args:
            batch: a `RolloutBatch`, or the `RolloutStats` of one, gathered over ranks; then its
                `step`, `optimizer_steps`, `drift` and `momentum` are given by keyword.

        Raises:
            ValueError: a batch or a target that makes no sense; nothing was changed, training can
            stop safely.
        """
        moment = StepInfo.of(batch, clock)
        stats = batch.stats() if isinstance(batch, RolloutBatch) else batch
        before = self.state_dict()
        try:
            return self._decide(stats, moment)
        except BaseException:
            self._restore(before)
            raise

    def post_update(self, change: float, stderr: float, trained: bool = True) -> dict[str, float]:
        """Take the measured change of the entropy by the last batch's update.

        Adapters call it after the batch's last optimizer step, where `remeasure` asks for it; see
        `entrocraft.post_update`. Decisions do without.

        Args:
            change: nats per token.
            stderr: its standard error; not finite if unknown.
            trained: whether it was measured on prompts that were trained on.

        Returns:
            What there is to log: `entropy/post_update_change` and its standard error.
        """
        self.observer.moved(change, stderr, trained)
        realized = {
            "entropy/post_update_change": float(change),
            "entropy/post_update_change_stderr": float(stderr),
        }
        return {key: value for key, value in realized.items() if math.isfinite(value)}

    def _decide(self, stats: RolloutStats, clock: StepInfo) -> Decision:
        if stats.total_tokens == 0:
            raise ValueError(
                "the batch has no response token inside its mask, so it has no entropy; check the "
                "mask (true on response tokens)"
            )
        measured, stderr = stats.mean_entropy(), stats.entropy_stderr()
        self._target.anchor(measured)
        metrics = {"entropy/measured": measured}
        if math.isfinite(stderr):
            metrics["entropy/measured_stderr"] = stderr
        metrics |= self._aim(clock.step)
        if self.rule is None:
            self.observer.observe(measured, stderr, 0.0, clock.drift)
            metrics["entropy/estimate"] = self.observer.entropy
            self.observer.commit((0.0, 0.0), 0.0, clock.optimizer_steps, clock.decay)
            self._decisions += 1
            ones = torch.ones(len(stats), dtype=torch.float64)
            metrics |= _outcome(0.0, ones, stats.active, saturated=False)
            useful = int(stats.active.sum())
            return Decision(ones, ones.clone(), stats.advantages.clone(), metrics, useful)
        offer = self._offer(stats, self.rule, clock)
        self.observer.observe(measured, stderr, offer.size, clock.drift)
        metrics["entropy/estimate"] = self.observer.entropy
        metrics |= self._authority(offer)
        pressure, saturated, shortfall = self._steer(measured, offer, clock)
        verdict, votes = offer.select(pressure)
        weights = self._draw(verdict, votes, offer)
        metrics |= _outcome(pressure, weights, votes & ~offer.spare, saturated)
        metrics["entropy/shortfall"] = shortfall
        if self.constant_reward_groups:
            metrics["entropy/constant_reward_used"] = float((offer.spare & (weights > 0)).sum())
        decision = Decision(
            weights,
            verdict.probabilities,
            verdict.advantages * weights,
            metrics,
            useful=int((votes & (weights > 0)).sum()),
        )
        metrics |= self._commit(offer.kept(verdict, weights), clock)
        self._decisions += 1
        self.alarm.check(metrics, decision.useful, self._remedies())
        return decision

    def _aim(self, step: int) -> dict[str, float]:
        target = self._target.target(step)
        if target is None:
            return {}
        goal = {"entropy/target": target}
        if isinstance(self.feedback, Deadband):
            goal["entropy/low"] = target + self.feedback.band.low
            goal["entropy/high"] = target + self.feedback.band.high
        return goal

    def _offer(self, stats: RolloutStats, rule: acceptance.Rule, clock: StepInfo) -> Response:
        """What this batch has to choose from."""
        none = torch.zeros(len(stats), dtype=torch.float64)
        spare = constant_reward_groups(stats) if self.constant_reward_groups else none
        advantages = stats.advantages + spare
        effect = effects.rollout_effects(replace(stats, advantages=advantages), self._effect)
        self._follow_scale(stats, effect)
        ballot = acceptance.RuleInput(
            stats.advantages,
            effect,
            self._scale,
            stats.rewards,
            spare if self.constant_reward_groups else None,
        )
        ones = replace(stats, advantages=torch.ones_like(none))
        unit = clock.optimizer_steps * effects.rollout_effects(ones, self._effect)
        return Response(rule, ballot, self.drawing, unit, stats.tokens, spare != 0)

    def _authority(self, offer: Response) -> dict[str, float]:
        """What the batch can add to the entropy in total, either way, before the choice is made."""
        limit = self.feedback.limit
        reachable = {
            "entropy/reachable_up": self.observer.in_nats(offer.reach(limit)),
            "entropy/reachable_down": self.observer.in_nats(offer.reach(-limit)),
        }
        return {key: nats for key, nats in reachable.items() if math.isfinite(nats)}

    def _steer(
        self, measured: float, offer: Response, clock: StepInfo
    ) -> tuple[float, bool, float]:
        """Ask the feedback: pressure, whether that is all it can ask for, nats out of reach."""
        if not (0 < offer.size < math.inf):
            # nothing votes, so nothing can be steered: a loop that looked on would only wind up
            return 0.0, False, 0.0

        def ahead(steps: int) -> float:
            target = self._target.ahead(clock.step, steps)
            assert target is not None, "a rule has a schedule, and the first batch anchored it"
            return target

        pressure = self.feedback.pressure(
            Situation(
                measured=measured,
                target=ahead,
                steps=clock.optimizer_steps,
                momentum=clock.decay,
                observer=self.observer,
                reach=offer.reach,
            )
        )
        return pressure, self.feedback.saturated, self.feedback.shortfall

    def _commit(self, kept: Tensor, clock: StepInfo) -> dict[str, float]:
        """Tell the observer what enters the update; return what that is predicted to do."""
        summed = float(kept[0].sum()), float(kept[1].sum())
        steps, momentum = clock.optimizer_steps, clock.decay
        positive, negative = self.observer.gains
        predicted = {
            "entropy/chosen_change": self.observer.in_nats(summed),
            "entropy/predicted_change": self.observer.predict(summed, steps, momentum),
            "entropy/drift": self.observer.drift,
            "entropy/gain_positive": positive,
            "entropy/gain_negative": negative,
        }
        self.observer.commit(summed, float(kept.norm()), steps, momentum)
        return {key: value for key, value in predicted.items() if math.isfinite(value)}

    def target(self, step: int) -> float | None:
        """Target entropy at an optimizer step, nats per token; None while it is not known."""
        return self._target.target(step)

    def _follow_scale(self, stats: RolloutStats, effect: Tensor) -> None:
        """Slow average of the mean size of the effects that carry a vote, or may join the vote."""
        votes = effect[stats.active] if bool(stats.active.any()) else effect[effect != 0]
        if len(votes) == 0:
            return
        size = float(votes.abs().mean())
        if not math.isfinite(size) or size == 0:
            return
        memory = _SCALE_MEMORY if self._scale > 0 else 0.0
        self._scale = memory * self._scale + (1 - memory) * size

    def _draw(self, verdict: acceptance.Selection, votes: Tensor, offer: Response) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self._decisions) % 2**63)
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        # ordered by effect, the draw is balanced in every range of effects: its sum stays on plan
        order = torch.argsort(offer.effects, stable=True)
        return self.drawing.weights(
            verdict.probabilities, votes, offer.tokens, order, uniform, offer.spare
        )

    def _remedies(self) -> list[str]:
        """What a user can change where rejection is at its limit."""
        remedies = ["make it slower", "give more rollouts per batch", "raise the learning rate"]
        if self.rule is not None and self.rule.deadband:
            return [*remedies, "use rule='tilt'"]
        if not self.constant_reward_groups:
            remedies.append(
                "let all-correct and all-wrong groups join (constant_reward_groups=True)"
            )
        return remedies

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs to decide as if never interrupted, for JSON."""
        return {
            "version": 2,
            "settings": self._settings(),
            "decisions": self._decisions,
            "goal": self._target.state_dict(),
            "scale": self._scale,
            "feedback": self.feedback.state_dict(),
            "observer": self.observer.state_dict(),
            **self.alarm.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: not a state of this class, or of another rule or feedback, or one whose
                start makes the schedule impossible; nothing changed.
        """
        if not isinstance(state, dict) or state.get("version") != 2:
            raise ValueError(
                f"not a controller state of version 2: {str(state)[:200]}; was the checkpoint "
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
        except TargetError:
            self._restore(before)
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._restore(before)
            raise ValueError(
                f"the checkpoint's memory does not fit {self!r} with feedback "
                f"{type(self.feedback).__name__} ({error!r}); resume with the rule and feedback "
                "that wrote it"
            ) from error

    def _settings(self) -> str:
        """Return repr without addresses: those of plain functions change from run to run."""
        settings = (
            f"{self!r} with {self.feedback!r}, {self.drawing!r}, "
            f"constant_reward_groups={self.constant_reward_groups}, "
            f"remeasure={self.remeasure}"
        )
        return re.sub(r" at 0x[0-9a-fA-F]+", "", settings)

    def _restore(self, state: dict[str, Any]) -> None:
        self._decisions = int(state["decisions"])
        self._target.load_state_dict(state["goal"])
        self._scale = float(state["scale"])
        self.feedback.load_state_dict(state["feedback"])
        self.observer.load_state_dict(state["observer"])
        self.alarm.load_state_dict(state)


def _outcome(pressure: float, weights: Tensor, votes: Tensor, saturated: bool) -> dict[str, float]:
    """Return what was done with the rollouts that carry a vote."""
    kept, count = int((votes & (weights > 0)).sum()), int(votes.sum())
    return {
        "entropy/pressure": pressure,
        "entropy/kept_fraction": kept / count if count else 1.0,
        "entropy/saturated": float(saturated),
        "entropy/empty": float(kept == 0),
    }


def _feedback_for(
    rule: acceptance.Rule | None,
    band: float | tuple[float, float],
    feedback: Feedback | str | None,
) -> Feedback:
    relay = Deadband(band)  # checks the band also where it is not used
    if rule is None or not rule.deadband:
        return Planner() if feedback is None else get_feedback(feedback)
    if isinstance(feedback, str):
        raise ValueError(
            f"rule {rule.name!r} reads a band and takes no feedback, got {feedback!r}; leave it "
            "out, or use rule='tilt'"
        )
    return relay if feedback is None else get_feedback(feedback)
