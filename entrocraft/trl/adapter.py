"""Adapter of TRL: reads a generation batch, applies a decision and scores the batch again.

TRL computes log-probabilities (and entropies) of the completions in one method. Where it does so
before the update anyway, the pass is listened to; where it does not, one pass without gradients is
made. The logit-level sensitivity comes from the same pass, position by position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
import trl
from accelerate.utils import broadcast, gather
from torch import Tensor, nn

from entrocraft.adapter import Adapter, Processes, ScoredTokens
from entrocraft.effects import TOKEN_LEVELS
from entrocraft.method import Decision
from entrocraft.rollouts import RolloutBatch, RolloutStats, StepInfo
from entrocraft.rollouts.batch import constant_rewards
from entrocraft.trl.head import has_dropout, pass_with_sensitivity

__all__ = [
    "AcceleratorProcesses",
    "GenerationBatch",
    "SignalRecorder",
    "Signals",
    "innermost_optimizer",
    "response_mask",
    "take_rows",
]

_MEAN_OF_ROLLOUTS = ("grpo", "sapo")
"""TRL's losses that average over the tokens of each rollout first."""

_OVER_ROLLOUTS = (*_MEAN_OF_ROLLOUTS, "dr_grpo", "luspo")
"""TRL's losses that divide by the number of rollouts, with or without tokens."""

_BY_TOKEN = (
    *("completion_ids", "completion_mask", "tool_mask", "importance_sampling_ratio"),
    *("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"),
)
"""What TRL's dictionary has (b, T) of, or (b, 1)."""

_WITH_PROMPT = ("token_type_ids", "mm_token_type_ids")
"""What it has (b, P + T) of, P tokens of the prompt before the completion."""

_PASSES = 4
"""Passes, at least, in which a batch is scored apart from TRL's own."""

_MODEL_INPUTS = signature(trl.GRPOTrainer._get_per_token_logps_and_entropies).parameters
"""What TRL's log-prob pass takes: besides tokens what a vision model needs, as the batch has it."""


@dataclass(frozen=True)
class Signals:
    """Per-token signals of one process, (B, T) each, in nats.

    `sensitivity` (nats per unit of advantage) is None unless the effect level needs it.
    """

    logprobs: Tensor
    entropies: Tensor
    sensitivity: Tensor | None = None


class SignalRecorder:
    """Takes signals from TRL's log-prob passes, as an effect level needs them."""

    def __init__(self, trainer: Any, level: str | None) -> None:
        self._trainer = trainer
        self._level_needs_tokens = level in TOKEN_LEVELS
        # two passes that drop other units differ by more than an update does
        self._dropout = has_dropout(trainer.model)
        self._open = self._sensitive = False
        self._first: Signals | None = None

    @contextmanager
    def listening(self, sensitivity: bool = True) -> Iterator[None]:
        """Record the first pass of the policy without gradients inside this block."""
        self._open, self._first = True, None
        self._sensitive = sensitivity and self._level_needs_tokens
        try:
            yield
        finally:
            self._open = False

    def wants(self, model: nn.Module) -> bool:
        """Whether to record TRL's pass of this model."""
        trainer = self._trainer
        if not self._open or self._first is not None or torch.is_grad_enabled():
            return False
        policy = model is trainer.model or model is getattr(trainer, "model_wrapped", None)
        return policy and not (self._dropout and model.training)

    def record(self, compute: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run TRL's pass `compute(*args, **kwargs)`, with entropies, and keep what it says."""
        out, sensitivity = self.score(compute, args, kwargs, self._sensitive)
        self._first = Signals(out[0].detach(), out[1].detach(), sensitivity)
        return out

    def score(
        self, compute: Callable, args: tuple, kwargs: dict[str, Any], sensitive: bool | None = None
    ) -> tuple[Any, Tensor | None]:
        """TRL's pass with entropies, and the tokens' sensitivity if the level needs it."""
        kwargs = dict(kwargs, compute_entropy=True)
        sensitivity = None
        if self._level_needs_tokens if sensitive is None else sensitive:
            out, sensitivity = pass_with_sensitivity(self._trainer, compute, args, kwargs)
        else:
            out = compute(*args, **kwargs)
        if out[1] is None:
            raise RuntimeError(
                "TRL returned no entropies although asked to; entrocraft knows TRL 1.5 to 1.16: "
                "pin one of them"
            )
        return out, sensitivity

    def heard(self, output: dict[str, Any]) -> Signals | None:
        """What was recorded of a batch that TRL scored; None if TRL made no pass over it."""
        if self._first is not None and _is_pass_of(self._first.logprobs, output):
            return self._first
        return None

    def ask(
        self, output: dict[str, Any], rows: Tensor | None = None, sensitivity: bool = True
    ) -> Signals:
        """Score rollouts of a batch of TRL's without gradients: all of them, or these rows.

        Rollouts of about one length go together, so that little padding is scored.
        """
        lengths = output["completion_mask"].sum(1)
        rows = torch.arange(len(lengths), device=lengths.device) if rows is None else rows
        size = min(self._trainer.args.per_device_train_batch_size, -(-len(rows) // _PASSES))
        if output.get("pixel_values") is not None:
            return self._pass(output, sensitivity)  # images are not split by rollouts
        order = lengths[rows].argsort(stable=True)
        shape = len(rows), output["completion_mask"].shape[1]
        found: list[Tensor] = []
        for part in order.split(max(size, 1)):
            seen = self._pass(take_rows(output, rows[part]), sensitivity)
            parts = [seen.logprobs, seen.entropies, seen.sensitivity]
            values = [value for value in parts if value is not None]
            found = found or [value.new_zeros(shape) for value in values]
            for whole, value in zip(found, values, strict=True):
                whole[part, : value.shape[1]] = value
        return Signals(*found)

    def _pass(self, output: dict[str, Any], sensitivity: bool) -> Signals:
        trainer = self._trainer
        training = trainer.model.training
        trainer.model.eval()  # dropout would draw from the generator that the plain trainer uses
        try:
            with torch.no_grad(), self.listening(sensitivity):
                trainer._get_per_token_logps_and_entropies(
                    trainer.model,
                    torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                    torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                    output["completion_ids"].size(1),
                    batch_size=trainer.args.per_device_train_batch_size,
                    **{name: output[name] for name in _MODEL_INPUTS if name in output},
                )
        finally:
            trainer.model.train(training)
        assert self._first is not None
        return self._first


def _is_pass_of(logprobs: Tensor, output: dict[str, Any]) -> bool:
    """Whether a recorded pass is the old-log-prob pass of this very batch.

    A pass of the reference policy that shares the model (PEFT's adapter switched off) looks the
    same from outside; the batch's own old log-probabilities tell them apart.
    """
    if (old := output.get("old_per_token_logps")) is not None:
        return torch.equal(old, logprobs)
    if (old := output.get("old_logps")) is not None:
        return torch.equal(old, (logprobs * output["completion_mask"]).sum(1))
    return False


class AcceleratorProcesses(Processes):
    """The processes of an Accelerator."""

    def __init__(self, accelerator: Any) -> None:
        self.count = accelerator.num_processes
        self.index = accelerator.process_index
        self._device = accelerator.device

    def gather(self, rows: Tensor) -> Tensor:
        return gather(rows.to(self._device)).cpu() if self.count > 1 else rows

    def broadcast(self, values: Tensor) -> Tensor:
        return broadcast(values.to(self._device)).cpu() if self.count > 1 else values


class GenerationBatch(Adapter):
    """One generation batch of a TRL trainer, `output` as TRL scored it.

    `signals` are None until the tokens are scored; `rewards` are those of all processes' rollouts,
    or None.

    Raises:
        ValueError: a trainer whose advantages are not one for each rollout.
    """

    def __init__(
        self,
        trainer: Any,
        output: dict[str, Any],
        recorder: SignalRecorder,
        signals: Signals | None,
        rewards: Tensor | None,
    ) -> None:
        advantages = output.get("advantages")
        if advantages is None or advantages.ndim != 1:
            found = "none" if advantages is None else f"shape {tuple(advantages.shape)}"
            raise ValueError(
                f"entropy control expects one advantage for each rollout, (B,), from TRL; found "
                f"{found}. Combine per-token advantages after the decision, in _compute_loss"
            )
        self.method = trainer.entropy_control
        self.processes = AcceleratorProcesses(trainer.accelerator)
        self.output = output
        self._trainer, self._recorder, self._rewards = trainer, recorder, rewards
        self.mask = response_mask(output)
        self.signals: Any = signals
        micro_batches = trainer.args.steps_per_generation * trainer.num_iterations
        steps = micro_batches / trainer.args.gradient_accumulation_steps
        self._step = StepInfo(
            trainer.state.global_step,
            steps,
            _momentum(trainer.optimizer),
            *_learning_rates(trainer.optimizer),
        )

    def step_info(self) -> StepInfo:
        return self._step

    def local_stats(self) -> RolloutStats:
        return self.part(self.output, self.signals)

    def part(
        self, rollouts: dict[str, Any], signals: Signals, rows: Tensor | None = None
    ) -> RolloutStats:
        """Per-rollout sums of some rollouts; with their `rows`, all else that is known of them."""
        advantages, sensitivity = rollouts["advantages"], signals.sensitivity
        if (ratio := rollouts.get("importance_sampling_ratio")) is not None:
            # of vLLM's policy to ours, (B, T) or (B, 1): the loss multiplies tokens by it, and
            # leaves out by 0 what lies too far off
            trained = (response_mask(rollouts) & (ratio != 0)).any(1)
            advantages = torch.where(trained, advantages, 0.0)
            sensitivity = None if sensitivity is None else sensitivity * ratio
        batch = RolloutBatch(
            step=self._step.step,
            advantages=advantages,
            mask=response_mask(rollouts),
            logprobs=signals.logprobs,
            entropies=signals.entropies,
            sensitivity=sensitivity,
        )
        stats = batch.stats()
        return stats if rows is None else self.complete(stats, rows.cpu())

    def exact_advantages(self) -> Tensor:
        """The batch's advantages (b,) without rounding noise, before its tokens are scored."""
        old, zeros = self.output["advantages"], torch.zeros(len(self.mask), dtype=torch.float64)
        tokens = self.mask.sum(1).cpu().double()
        stats = RolloutStats(old.cpu().double(), tokens, zeros, zeros)
        exact = self.complete(stats, torch.arange(len(self.mask))).without_rounding_noise()
        return exact.advantages.to(old.device, old.dtype)

    def complete(self, stats: RolloutStats, rows: Tensor | None = None) -> RolloutStats:
        """Add rewards, prompts and the loss's weights, in TRL's order: groups are contiguous.

        `rows` numbers the rollouts among this process's; None: they are all of all processes.
        """
        loss = getattr(self._trainer, "loss_type", None)  # RLOO has none, averages over rollouts
        weighted = loss in _MEAN_OF_ROLLOUTS
        here = torch.arange(len(stats))
        if rows is not None:
            here = self.processes.index * len(self.mask) + rows
        rewards, size, constant = self._rewards, self._trainer.num_generations, None
        if rewards is not None:
            rewards = rewards.detach().cpu().double()
            constant = constant_rewards(rewards, torch.arange(len(rewards)) // size)[here]
            rewards = rewards[here]
        return replace(
            stats,
            rewards=rewards,
            group=here // size,  # TRL's order
            constant=constant,
            token_weight=1 / stats.tokens.clamp(min=1) if weighted else None,
            by_rollout=loss is None or loss in _OVER_ROLLOUTS,
        )

    def write(self, decision: Decision, advantages: Tensor, stats: RolloutStats) -> None:
        old = self.output["advantages"]
        self.output["advantages"] = advantages.to(old.device, old.dtype)

    def log(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._trainer._metrics["train"][name].append(value)

    def score(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        rows, images = chosen.to(self.mask.device), self.output.get("pixel_values") is not None
        if images and len(chosen) < len(self.mask):
            raise ValueError(
                f"remeasure is {self.method.remeasure}, and images are not split by rollouts; use "
                "1 or 0"
            )
        signals = self._recorder.ask(self.output, rows, sensitivity=False)
        return signals.logprobs, signals.entropies

    def before(self) -> ScoredTokens:
        """This process's rollouts under the policy before the update."""
        count, size = len(self.mask), self._trainer.num_generations
        prompts = (self.processes.index * count + torch.arange(count)) // size
        logprobs, entropies = self.signals.logprobs, self.signals.entropies
        return ScoredTokens(self.mask, logprobs, entropies, prompts, spread=count % size != 0)


def take_rows(rollouts: dict[str, Any], rows: Tensor, crop: bool = True) -> dict[str, Any]:
    """These rollouts of TRL's dictionary; with `crop` as wide as the longest completion of them."""
    size, taken = len(rollouts["completion_mask"]), dict(rollouts)
    size_of_prompts = rollouts["prompt_ids"].shape[1]
    for name, value in rollouts.items():
        if torch.is_tensor(value) and value.ndim and len(value) == size:
            taken[name] = value[rows]
        elif isinstance(value, list) and len(value) == size:
            taken[name] = [value[row] for row in rows.tolist()]
    if not crop:
        return taken
    seen = taken["completion_mask"].any(0).nonzero()
    width = int(seen.max()) + 1 if len(seen) else 1
    for names, columns in ((_BY_TOKEN, width), (_WITH_PROMPT, size_of_prompts + width)):
        for name in names:
            if taken.get(name) is not None and taken[name].shape[1] > 1:
                taken[name] = taken[name][:, :columns]
    return taken


def response_mask(rollouts: dict[str, Any]) -> Tensor:
    """(B, T) bool: the policy's own response tokens, without those of tools."""
    mask = rollouts["completion_mask"].bool()
    tools = rollouts.get("tool_mask")
    return mask if tools is None else mask & tools.bool()


def innermost_optimizer(optimizer: Any) -> Any:
    """Return the optimizer that accelerate and others wrap: the state is the inner one's."""
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = inner
    return optimizer


def _momentum(optimizer: Any) -> float | None:
    """Adam's beta1 or SGD's momentum, the largest of all groups; None of another optimizer."""
    optimizer = innermost_optimizer(optimizer)
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return max(float(group["betas"][0]) for group in optimizer.param_groups)
    if isinstance(optimizer, torch.optim.SGD):
        return max(float(group["momentum"]) for group in optimizer.param_groups)
    return None


def _learning_rates(optimizer: Any) -> tuple[float | None, float]:
    """Learning rate of the first group, and its share of the one that the scheduler started from.

    The rate before the scheduler has set one, and that of a first step at 0, count in full.
    """
    if optimizer is None:
        return None, 1.0
    group = innermost_optimizer(optimizer).param_groups[0]
    rate, largest = float(group["lr"]), float(group.get("initial_lr", group["lr"]))
    return rate, min(rate / largest, 1.0) if rate > 0 and largest > 0 else 1.0
