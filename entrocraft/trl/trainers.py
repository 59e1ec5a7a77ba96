"""TRL's trainers with an entropy method between their advantages and their loss."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
import trl
from torch import Tensor

from entrocraft import schedules
from entrocraft.adapter import run_decision
from entrocraft.controller import EntropyController
from entrocraft.method import Decision, EntropyControlWarning, Method
from entrocraft.methods import METHODS, get_method
from entrocraft.selection import RULES
from entrocraft.trl.adapter import GenerationBatch, SignalRecorder
from entrocraft.trl.checkpoint import EntropyControlState
from entrocraft.trl.dropping import RowDropping
from entrocraft.trl.extra import join_extra_rollouts
from entrocraft.trl.in_loss import LossDecision, LossHook
from entrocraft.trl.options import DecisionCallback, apply_settings, check_loss, with_options
from entrocraft.trl.remeasuring import Remeasuring, RunningChange
from entrocraft.trl.tokens import TokenHook

_Trainer: Any = object  # for the type checker: the mixin's next class is one of TRL's trainers

__all__ = ["EntropyControlMixin", "GRPOTrainer", "RLOOTrainer"]


class EntropyControlMixin(_Trainer):
    """Adds `entropy_control=` to TRL's `GRPOTrainer`, `RLOOTrainer` or a subclass of them.

        class MyTrainer(EntropyControlMixin, trl.GRPOTrainer): ...

    Once per generation batch, after TRL has computed advantages, the method decides on all ranks'
    rollouts together; each process gets its slice back. Rejected rollouts keep their place with
    advantage 0: masks, normalizers, the KL term and logged completions stay TRL's. Evaluation is
    untouched.

    Args:
        entropy_control: a schedule (text or callable), an `EntropyController`, the name of a
            baseline ("clip_cov", see `entrocraft.methods`), any other `Method`, or None: then the
            trainer is TRL's, bit for bit. Methods have state; give each trainer one of its own.

    Attributes:
        entropy_control: the method, or None.
        last_decision: on the latest generation batch, over all ranks; None before the first.
    """

    # set before TRL's constructor, which may already call what is overridden here
    entropy_control: Method | None = None
    last_decision: Decision | None = None
    _tokens: TokenHook | None = None
    _dropping: RowDropping | None = None
    _in_loss: LossDecision | None = None
    _remeasuring: Remeasuring | None = None
    _rollout_rewards: Tensor | None = None

    def __init__(self, *args: Any, entropy_control: Any = None, **kwargs: Any) -> None:
        method = (
            _from_text(entropy_control) if isinstance(entropy_control, str) else entropy_control
        )
        if isinstance(method, Method):
            args, kwargs = with_options(args, kwargs, method)
        super().__init__(*args, **kwargs)
        if method is None:
            return
        if not isinstance(method, Method):
            method = EntropyController(schedule=method, seed=self.args.seed)
        check_loss(self, method)
        method.prepare(
            vocabulary=self.model.config.get_text_config().vocab_size,
            steps=self.args.max_steps if self.args.max_steps > 0 else None,
        )
        _warn_of_use(self, method)
        method.hosted = True
        self.entropy_control = method
        self._signals = SignalRecorder(self, method.effect)
        if method.remeasure:
            running = RunningChange.possible(self) and not method.token_scope
            self._remeasuring = RunningChange(self) if running else Remeasuring()
            self.add_callback(self._remeasuring)
        self.add_callback(DecisionCallback(self))
        if method.token_scope or method.uses_bonus:
            self._tokens = TokenHook(self, method)
        if method.drop_rejected:
            self._dropping = RowDropping(self)
        if method.decides_in_parts and LossDecision.possible(self, method):
            self._in_loss = LossDecision(self._decided)
        self.add_callback(EntropyControlState.of(method))

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        compute = super()._get_per_token_logps_and_entropies
        if self.entropy_control is not None:
            if self._signals.wants(args[0] if args else kwargs["model"]):
                return self._signals.record(compute, args, kwargs)
            if self._tokens is not None and self._tokens.inside:
                return self._tokens.forward(compute, args, kwargs)
            for hook in self._hooks:
                if hook.inside:
                    return hook.forward(partial(self._signals.score, compute, args, kwargs))
        return compute(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        if self.model.training and self._dropping is not None:
            return self._dropping.loss(self._hooked_loss, model, inputs)
        return self._hooked_loss(model, inputs)

    def _hooked_loss(self, model: Any, inputs: Any) -> Tensor:
        compute = super()._compute_loss
        if self.model.training:
            for hook in self._hooks:
                if hook.waits_for(inputs):
                    return hook.loss(compute, model, inputs)
            if self._tokens is not None:
                return self._tokens.loss(compute, model, inputs)
        return compute(model, inputs)

    @property
    def _hooks(self) -> list[LossHook]:
        return [hook for hook in (self._in_loss, self._remeasuring) if isinstance(hook, LossHook)]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        per_function = super()._calculate_rewards(*args, **kwargs)
        if self.entropy_control is not None:
            weights = self.reward_weights.to(per_function.device)
            rewards = (per_function * weights).nansum(dim=1)
            rewards[torch.isnan(per_function).all(dim=1)] = torch.nan
            self._rollout_rewards = rewards  # TRL has gathered them: (all ranks' B,)
        return per_function

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        generate = super()._generate_and_score_completions
        if self.entropy_control is None:
            return generate(inputs)
        if not self.model.training:
            output = generate(inputs)
            self._log_kept([None] * len(inputs) * self.accelerator.num_processes)
            return output
        with self._signals.listening():
            output = generate(inputs)
        before = self.last_decision
        self._decide_on(output)
        decision = self.last_decision
        if decision is not None and decision is not before and decision.extra is not None:
            joined = join_extra_rollouts(self, generate, inputs, output, decision.extra)
            self._metrics["train"]["entropy/extra_rollouts"].append(float(joined))
        return output

    def _decide_on(self, output: dict[str, Any]) -> None:
        """Let the method decide on this generation batch and put its advantages into `output`."""
        signals = self._signals.heard(output)
        later = signals is None and self._in_loss is not None
        if signals is None and not later:
            signals = self._signals.ask(output)
        batch = GenerationBatch(self, output, self._signals, signals, self._rollout_rewards)
        if later:
            assert self._in_loss is not None
            self._in_loss.begin(batch)
        else:
            self._decided(batch, run_decision(batch))

    def _decided(self, batch: GenerationBatch, decision: Decision | None) -> None:
        if decision is None:
            # every completion was cut short and masked: nothing to measure or to train on;
            # token-level methods leave a batch alone that carries no mark of theirs
            self._log_kept([True] * len(batch.mask) * self.accelerator.num_processes)
            return
        self.last_decision = decision
        apply_settings(self, decision.settings)
        if self._tokens is not None:
            self._tokens.decided(batch.output, batch.signals)
        if self._remeasuring is not None:
            self._remeasuring.remember(batch)
        self._log_kept((decision.weights != 0).tolist())

    def _log_kept(self, kept: list) -> None:
        """Fill the column `kept` of the completions table, row by row like TRL's own columns."""
        self._logs["extra"]["kept"].extend(kept)


class GRPOTrainer(EntropyControlMixin, trl.GRPOTrainer):
    """`trl.GRPOTrainer` with `entropy_control=`; every loss type and importance-sampling level."""


class RLOOTrainer(EntropyControlMixin, trl.RLOOTrainer):
    """`trl.RLOOTrainer` with `entropy_control=`."""


def _warn_of_use(trainer: Any, method: Method) -> None:
    """Warn of a method that goes on with another run's state, or that cannot act in this one."""
    found = []
    if method.hosted:
        found.append(
            f"{method!r} was in another trainer and keeps the state it has from there; make a new "
            "one for a new run"
        )
    accumulated = trainer.args.gradient_accumulation_steps
    micro_batches = trainer.args.steps_per_generation * trainer.num_iterations
    if micro_batches <= accumulated and method.needs_updates:
        found.append(
            "with one update per rollout batch every importance ratio is 1 and the method "
            f"{method.name!r} is plain RL; use num_iterations=2, or a steps_per_generation "
            f"above gradient_accumulation_steps={accumulated} (updates in entrocraft's YAML)"
        )
    bonus = {"entropy_coef", "use_adaptive_entropy"}
    on = any(getattr(trainer.args, name, False) for name in bonus)
    if on and not bonus & set(method.trainer_options):
        found.append(
            "both entropy_control and TRL's entropy bonus (entropy_coef, use_adaptive_entropy) "
            "are on and will work against each other; set entropy_coef=0 unless that is the "
            "point of the experiment"
        )
    for text in found:
        warnings.warn(text, EntropyControlWarning, stacklevel=3)


def _from_text(text: str) -> Any:
    """Return the baseline of this name, or the text if it is a schedule.

    Raises:
        ValueError: it is neither.
    """
    if text in METHODS:
        return get_method(text)
    if text in RULES:
        raise ValueError(
            f"{text!r} is a rule of the controller, which needs a schedule: "
            f"entropy_control=EntropyController('linear(initial, 0.3, 300)', rule={text!r})"
        )
    try:
        schedules.from_string(text)
    except ValueError as error:
        if "(" in text:
            raise
        raise ValueError(
            f"entropy_control={text!r} is neither a schedule such as 'linear(0.6, 0.3, 300)' nor a "
            f"method; methods are {', '.join(METHODS)}"
        ) from error
    return text
