"""Adapter of TRL: applies a decision to a generation batch and scores it again afterwards."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import broadcast, gather
from torch import Tensor
from transformers import TrainerCallback

from entrocraft.adapter import Adapter, Processes, ScoredTokens, run_remeasure
from entrocraft.method import Decision
from entrocraft.rollouts import RolloutBatch, RolloutStats, StepInfo
from entrocraft.trl.optimizer import optimizer_momentum
from entrocraft.trl.signals import SignalRecorder, rows_of

__all__ = ["AcceleratorProcesses", "GenerationBatch", "Remeasuring"]

_MEAN_OF_ROLLOUTS = ("grpo", "sapo")
"""TRL's losses that average over the tokens of each rollout first."""

_OVER_ROLLOUTS = (*_MEAN_OF_ROLLOUTS, "dr_grpo", "luspo")
"""TRL's losses that divide by the number of rollouts, with or without tokens."""


class AcceleratorProcesses(Processes):
    """The processes of an Accelerator."""

    def __init__(self, accelerator: Any) -> None:
        self.count = accelerator.num_processes
        self.index = accelerator.process_index
        self._device = accelerator.device

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate the rows of all processes, equally many on each."""
        if self.count == 1:
            return rows
        rows = rows.float() if self._device.type == "mps" else rows
        return gather(rows.to(self._device)).cpu().to(torch.float64)

    def broadcast(self, values: Tensor) -> Tensor:
        """Return the first process's values."""
        if self.count == 1:
            return values
        values = values.float() if self._device.type == "mps" else values
        return broadcast(values.to(self._device), from_process=0).cpu()


class GenerationBatch(Adapter):
    """One generation batch of a TRL trainer.

    Args:
        trainer: with `entropy_control`.
        output: the batch as TRL scored it; its advantages are replaced.
        recorder: of the trainer's log-prob passes.
        rewards: of all processes' rollouts, or None.

    Raises:
        ValueError: a trainer whose advantages are not one for each rollout.
    """

    def __init__(
        self,
        trainer: Any,
        output: dict[str, Any],
        recorder: SignalRecorder,
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
        self.mask = output["completion_mask"].bool()
        if output.get("tool_mask") is not None:
            self.mask = self.mask & output["tool_mask"].bool()
        self.signals = recorder.heard(output) or recorder.ask(trainer, output)
        args = trainer.args
        micro_batches = args.steps_per_generation * trainer.num_iterations
        self._step = StepInfo(
            trainer.state.global_step,
            micro_batches / args.gradient_accumulation_steps,
            optimizer_momentum(trainer.optimizer),
        )

    def step_info(self) -> StepInfo:
        """Optimizer steps taken, and those that this batch is used for."""
        return self._step

    def local_stats(self) -> RolloutStats:
        """Per-rollout sums of this process; vLLM's importance ratios are taken in."""
        advantages, sensitivity = self.output["advantages"], self.signals.sensitivity
        if (ratio := self.output.get("importance_sampling_ratio")) is not None:
            # of vLLM's policy to ours, (B, T) or (B, 1): the loss multiplies tokens by it, and
            # leaves out by 0 what lies too far off
            trained = (self.mask & (ratio != 0)).any(1)
            advantages = torch.where(trained, advantages, 0.0)
            sensitivity = None if sensitivity is None else sensitivity * ratio
        batch = RolloutBatch(
            step=self._step.step,
            advantages=advantages,
            mask=self.mask,
            logprobs=self.signals.logprobs,
            entropies=self.signals.entropies,
            sensitivity=sensitivity,
        )
        return batch.stats()

    def complete(self, stats: RolloutStats) -> RolloutStats:
        """Add rewards, prompts and the loss's weights, in TRL's order: groups are contiguous."""
        loss = getattr(self._trainer, "loss_type", None)  # RLOO has none, averages over rollouts
        weighted = loss in _MEAN_OF_ROLLOUTS
        return RolloutStats(
            advantages=stats.advantages,
            tokens=stats.tokens,
            logprob=stats.logprob,
            entropy=stats.entropy,
            sensitivity=stats.sensitivity,
            rewards=None if self._rewards is None else self._rewards.detach().cpu().double(),
            group=torch.arange(len(stats)) // self._trainer.num_generations,
            token_weight=1 / stats.tokens.clamp(min=1) if weighted else None,
            by_rollout=loss is None or loss in _OVER_ROLLOUTS,
        )

    def write(self, decision: Decision, advantages: Tensor, stats: RolloutStats) -> None:
        """Put the advantages into the batch."""
        old = self.output["advantages"]
        self.output["advantages"] = advantages.to(old.device, old.dtype)

    def log(self, metrics: dict[str, float]) -> None:
        """Append to TRL's metrics."""
        for name, value in metrics.items():
            self._trainer._metrics["train"][name].append(value)

    def score(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """One pass without gradients over some rollouts."""
        rows = rows_of(self.output, chosen.to(self.mask.device))
        signals = self._recorder.ask(self._trainer, rows, sensitivity=False)
        return signals.logprobs, signals.entropies

    def scored(self) -> ScoredTokens:
        """This process's rollouts under the policy before the update."""
        size = self._trainer.num_generations
        start = self.processes.index * len(self.mask)
        prompts = (start + torch.arange(len(self.mask))) // size
        spread = len(self.mask) % size != 0
        signals = self.signals
        return ScoredTokens(self.mask, signals.logprobs, signals.entropies, prompts, spread)


class Remeasuring(TrainerCallback):
    """Measures how far each batch moved the entropy, once its last optimizer step is done.

    That is before a checkpoint is written, so that a resumed run knows what the uninterrupted one
    knew. Where several generation batches make one step, or one ends within a step, nothing is
    measured.
    """

    def __init__(self) -> None:
        self._batch: GenerationBatch | None = None

    def remember(self, batch: GenerationBatch) -> None:
        """Take a batch that is about to be trained on."""
        self._batch = None
        steps = batch.step_info().optimizer_steps
        if steps >= 1 and float(steps).is_integer():
            # the batch's own dictionary is cut into micro-batches from here on
            batch.output = dict(batch.output)
            self._batch = batch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, once the batch was used for its last step."""
        batch = self._batch
        if batch is None:
            return
        step = batch.step_info()
        if state.global_step >= step.step + step.optimizer_steps:
            self._batch = None
            trained = batch.output["advantages"].detach().cpu().double()
            run_remeasure(batch, batch.scored(), trained)
