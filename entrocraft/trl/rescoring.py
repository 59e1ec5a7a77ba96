"""Scores a generation batch of TRL's once more, after its last optimizer step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor
from transformers import TrainerCallback

from entrocraft.post_update import change_sums, report_change
from entrocraft.trl.signals import SignalRecorder, Signals

__all__ = ["Odometer"]


@dataclass(frozen=True)
class _Departure:
    """What the policy said of a batch before its update, and the step at which that is over."""

    output: dict[str, Any]
    mask: Tensor
    signals: Signals
    arrival: float


class Odometer(TrainerCallback):
    """Tells the trainer's entropy method how far each batch really moved the entropy.

    It measures at the end of an optimizer step, before a checkpoint is written, so that a resumed
    run knows what the uninterrupted one knew. Where several generation batches make one step, or
    one ends within a step, it stays silent.
    """

    def __init__(self, trainer: Any, recorder: SignalRecorder) -> None:
        self._trainer = trainer
        self._recorder = recorder
        self._departure: _Departure | None = None

    def depart(
        self, output: dict[str, Any], mask: Tensor, signals: Signals, optimizer_steps: float
    ) -> None:
        """Remember a batch that is about to be trained on; mask (B, T)."""
        self._departure = None
        if optimizer_steps >= 1 and float(optimizer_steps).is_integer():
            arrival = self._trainer.state.global_step + optimizer_steps
            self._departure = _Departure(dict(output), mask, signals, arrival)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, once the batch was used for its last step."""
        start = self._departure
        if start is None or state.global_step < start.arrival:
            return
        self._departure = None
        trainer = self._trainer
        after = self._recorder.ask(trainer, start.output, sensitivity=False)
        stats = change_sums(
            start.mask,
            start.signals.logprobs,
            after.logprobs,
            start.signals.entropies,
            after.entropies,
        )
        trained = start.output["advantages"].detach().cpu().double()
        stats = torch.cat([stats, trained[:, None]], dim=1)
        if trainer.accelerator.num_processes > 1:
            device = trainer.accelerator.device
            stats = gather((stats.float() if device.type == "mps" else stats).to(device)).cpu()
        stats, trained = stats[:, :4], stats[:, 4]
        group = torch.arange(len(stats)) // trainer.num_generations
        metrics = report_change(trainer.entropy_control, stats, trained, group)
        for name, value in metrics.items():
            trainer._metrics["train"][name].append(value)
