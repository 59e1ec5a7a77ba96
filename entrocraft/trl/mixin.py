"""The mixin that puts an entropy method between TRL's advantages and its loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast, gather
from torch import Tensor

from entrocraft import schedules
from entrocraft.controller import EntropyController
from entrocraft.method import Decision, EntropyControlWarning, EntropyMethod
from entrocraft.methods import METHODS, get_method
from entrocraft.rollouts import RolloutBatch, RolloutStats
from entrocraft.selection.rules import RULES
from entrocraft.trl.checkpoint import EntropyControlState
from entrocraft.trl.extra import join_extra_rollouts
from entrocraft.trl.head import has_dropout
from entrocraft.trl.optimizer import optimizer_momentum
from entrocraft.trl.options import apply_settings, check_loss, with_options
from entrocraft.trl.rescoring import Odometer
from entrocraft.trl.signals import SignalRecorder
from entrocraft.trl.tokens import TokenHook

_T = TypeVar("_T")
_Trainer: Any = object  # for the type checker: the mixin's next class is one of TRL's trainers

__all__ = ["EntropyControlMixin"]

_MEAN_OF_ROLLOUTS = ("grpo", "sapo")
"""TRL's losses that average over the tokens of each rollout first."""

_OVER_ROLLOUTS = (*_MEAN_OF_ROLLOUTS, "dr_grpo", "luspo")
"""TRL's losses that divide by the number of rollouts, with or without tokens."""


class EntropyControlMixin(_Trainer):
    """Adds `entropy_control=` to TRL's `GRPOTrainer`, `RLOOTrainer` or a subclass of them.

        class MyTrainer(EntropyControlMixin, trl.GRPOTrainer): ...

    Once per generation batch, after TRL has computed advantages, the method decides on all ranks'
    rollouts together; each process gets its slice back. Rejected rollouts keep their place with
    advantage 0: masks, normalizers, the KL term and logged completions stay TRL's. Evaluation is
    untouched.

    Args:
        entropy_control: a schedule (text or callable), an `EntropyController`, the name of a peer
            ("clip_cov", see `entrocraft.methods`), any other entropy method, or None: then the
            trainer is TRL's, bit for bit. Methods remember; give each trainer one of its own.

    Attributes:
        entropy_control: the method, or None.
        last_decision: on the latest generation batch, over all ranks; None before the first.
    """

    entropy_control: EntropyMethod | None
    last_decision: Decision | None

    def __init__(self, *args: Any, entropy_control: Any = None, **kwargs: Any) -> None:
        # needed before TRL's constructor, which may already call what is overridden here
        self.entropy_control = None
        self.last_decision = None
        self._tokens: TokenHook | None = None
        if isinstance(entropy_control, str):
            entropy_control = _from_text(entropy_control)
        args, kwargs = with_options(super().__init__, args, kwargs, entropy_control)
        super().__init__(*args, **kwargs)
        if entropy_control is None:
            return
        check_loss(self, entropy_control)
        if not hasattr(entropy_control, "decide"):
            entropy_control = EntropyController(schedule=entropy_control, seed=self.args.seed)
        entropy_control.prepare(
            vocabulary=self.model.config.get_text_config().vocab_size,
            steps=self.args.max_steps if self.args.max_steps > 0 else None,
        )
        _warn_of_memory(entropy_control)
        _warn_of_one_update(self, entropy_control)
        self.entropy_control = entropy_control
        self._signals = SignalRecorder(
            self.temperature, entropy_control.effect, has_dropout(self.model)
        )
        self._rollout_rewards: Tensor | None = None
        self._odometer: Odometer | None = None
        if getattr(entropy_control, "remeasure", False):
            self._odometer = Odometer(self, self._signals)
            self.add_callback(self._odometer)
        self._tokens = TokenHook.of(self, entropy_control)
        self.add_callback(EntropyControlState.of(entropy_control))
        bonus = {"entropy_coef", "use_adaptive_entropy"}
        if any(getattr(self.args, name, False) for name in bonus) and not bonus & set(
            getattr(entropy_control, "trainer_options", ())
        ):
            warnings.warn(
                "both entropy_control and TRL's entropy bonus (entropy_coef, use_adaptive_entropy) "
                "are on and will work against each other; set entropy_coef=0 unless that is the "
                "point of the experiment",
                EntropyControlWarning,
                stacklevel=2,
            )

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        compute = super()._get_per_token_logps_and_entropies
        if self.entropy_control is not None:
            model = args[0] if args else kwargs["model"]
            if self._signals.wants(self, model):
                return self._signals.record(self, compute, args, kwargs)
            if self._tokens is not None and self._tokens.inside:
                return self._tokens.forward(self, compute, args, kwargs)
        return compute(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        if self._tokens is None or not self.model.training:
            return super()._compute_loss(model, inputs)
        return self._tokens.loss(self, super()._compute_loss, model, inputs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        per_function = super()._calculate_rewards(*args, **kwargs)
        if self.entropy_control is not None:
            weights = self.reward_weights.to(per_function.device)
            rewards = (per_function * weights).nansum(dim=1)
            rewards[torch.isnan(per_function).all(dim=1)] = torch.nan
            self._rollout_rewards = rewards  # TRL has gathered them: (all ranks' B,)
        return per_function

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        if self.entropy_control is None:
            return super()._generate_and_score_completions(inputs)
        if not self.model.training:
            output = super()._generate_and_score_completions(inputs)
            self._log_kept([None] * (len(inputs) * self.accelerator.num_processes))
            return output
        with self._signals.listening():
            output = super()._generate_and_score_completions(inputs)
        before = self.last_decision
        self._decide_on(output)
        decision = self.last_decision
        if decision is not None and decision is not before and decision.extra is not None:
            generate = super()._generate_and_score_completions
            joined = join_extra_rollouts(self, generate, inputs, output, decision.extra)
            self._metrics["train"]["entropy/extra_rollouts"].append(float(joined))
        return output

    def _decide_on(self, output: dict[str, Any]) -> None:
        """Let the method decide on this generation batch and put its advantages into `output`."""
        advantages = output.get("advantages")
        if advantages is None or advantages.ndim != 1:
            found = "none" if advantages is None else f"shape {tuple(advantages.shape)}"
            raise ValueError(
                f"entropy control expects one advantage for each rollout, (B,), from TRL; found "
                f"{found}. Combine per-token advantages after the decision, in _compute_loss"
            )
        mask = output["completion_mask"].bool()
        if output.get("tool_mask") is not None:
            mask = mask & output["tool_mask"].bool()
        signals = self._signals.heard(output) or self._signals.ask(self, output)
        sensitivity = signals.sensitivity
        if (ratio := output.get("importance_sampling_ratio")) is not None:
            # of vLLM's policy to ours, (B, T) or (B, 1): the loss multiplies tokens by it, and
            # leaves out by 0 what lies too far off
            trained = (mask & (ratio != 0)).any(1)
            advantages = torch.where(trained, advantages, 0.0)
            sensitivity = None if sensitivity is None else sensitivity * ratio
        args = self.args
        micro_batches = args.steps_per_generation * self.num_iterations
        optimizer_steps = micro_batches / args.gradient_accumulation_steps
        local = RolloutBatch(
            step=self.state.global_step,
            advantages=advantages,
            mask=mask,
            logprobs=signals.logprobs,
            entropies=signals.entropies,
            sensitivity=sensitivity,
        )
        stats = self._gather(self._together(local.stats))
        if stats.total_tokens == 0:
            # every completion was cut short and masked: nothing to measure, nothing to train on;
            # token-level methods leave a batch alone that carries no mark of theirs
            self._log_kept([True] * len(stats))
            return
        assert self.entropy_control is not None
        decision = self.entropy_control.decide(
            stats,
            step=self.state.global_step,
            optimizer_steps=optimizer_steps,
            momentum=optimizer_momentum(self.optimizer),
        )
        ready = decision.advantages.to(advantages.device, advantages.dtype)
        if self.accelerator.num_processes > 1:
            ready = broadcast(ready, from_process=0)
        start = self.accelerator.process_index * len(advantages)
        output["advantages"] = ready[start : start + len(advantages)]
        self.last_decision = decision
        apply_settings(self, decision.settings)
        if self._tokens is not None:
            self._tokens.decided(self, output, mask, signals)
        if self._odometer is not None:
            self._odometer.depart(output, mask, signals, optimizer_steps)
        for name, value in decision.metrics.items():
            self._metrics["train"][name].append(value)
        self._log_kept([bool(weight) for weight in decision.weights])

    def _together(self, compute: Callable[[], _T]) -> _T:
        """Return `compute()`; a batch that makes no sense on one rank stops all of them."""
        error: ValueError | None = None
        try:
            result = compute()
        except ValueError as found:
            error = found
        if self.accelerator.num_processes > 1:
            wrong = torch.tensor([float(error is not None)], device=self.accelerator.device)
            ranks = gather(wrong).nonzero().flatten().tolist()
            if ranks and error is None:
                raise ValueError(f"the rollouts of rank {ranks[0]} make no sense, see its error")
        if error is not None:
            raise error
        return result

    def _gather(self, local: RolloutStats) -> RolloutStats:
        """All ranks' stats, in TRL's global order: rank by rank, groups contiguous."""
        names = ["advantages", "tokens", "logprob", "entropy"]
        if local.sensitivity is not None:
            names.append("sensitivity")
        columns = torch.stack([getattr(local, name) for name in names], dim=1)
        if self.accelerator.num_processes > 1:
            device = self.accelerator.device
            if device.type == "mps":
                columns = columns.float()
            columns = gather(columns.to(device)).cpu().double()
        rewards = self._rollout_rewards
        rows = torch.arange(len(columns))
        gathered = {name: columns[:, index] for index, name in enumerate(names)}
        loss = getattr(self, "loss_type", None)  # RLOO has none, and averages over rollouts
        weighted = loss in _MEAN_OF_ROLLOUTS
        return RolloutStats(
            **gathered,
            rewards=None if rewards is None else rewards.detach().cpu().double(),
            group=rows // self.num_generations,
            token_weight=1 / gathered["tokens"].clamp(min=1) if weighted else None,
            by_rollout=loss is None or loss in _OVER_ROLLOUTS,
        ).without_rounding_noise()

    def _log_kept(self, kept: list[bool | None]) -> None:
        """Fill the column `kept` of the completions table, row by row like TRL's own columns."""
        self._logs["extra"]["kept"].extend(kept)


def _warn_of_memory(method: Any) -> None:
    """Warn if a method has been in another trainer: it goes on with what it learnt there."""
    if getattr(method, "_hosted", False):
        warnings.warn(
            f"{method!r} has been in another trainer and goes on with what it learnt there: its "
            "start, gains and drift; make a new one for a new run",
            EntropyControlWarning,
            stacklevel=3,
        )
    with suppress(AttributeError):
        method._hosted = True


def _warn_of_one_update(trainer: Any, method: Any) -> None:
    """Warn if a method acts on a policy that has moved, and no update of a batch meets one."""
    args = trainer.args
    accumulated = args.gradient_accumulation_steps
    one = args.steps_per_generation * trainer.num_iterations <= accumulated
    if one and getattr(method, "needs_updates", False):
        warnings.warn(
            "with one update per rollout batch every importance ratio is 1 and the method "
            f"{method.name!r} is plain RL; use num_iterations=2, or a steps_per_generation "
            f"above gradient_accumulation_steps={accumulated} (updates in entrocraft's YAML)",
            EntropyControlWarning,
            stacklevel=3,
        )


def _from_text(text: str) -> Any:
    """Return the peer of this name, or the text if it is a schedule.

    Raises:
        ValueError: neither of both.
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
