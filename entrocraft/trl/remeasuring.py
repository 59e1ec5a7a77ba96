"""Post-update change in TRL: how far a batch has moved the entropy, after or while it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from entrocraft.adapter import run_remeasure
from entrocraft.post_update import change_stats, report_running_change
from entrocraft.trl.adapter import GenerationBatch, Signals
from entrocraft.trl.head import fuses_loss, has_dropout
from entrocraft.trl.in_loss import ROW, LossHook

__all__ = ["Remeasuring", "RunningChange"]


class Remeasuring(TrainerCallback):
    """Scores a share of each batch once more, once its last optimizer step is done.

    That is before a checkpoint is written, so that a resumed run knows what the uninterrupted one
    knew. Where several generation batches make one step, or one ends within a step, nothing is
    measured.
    """

    def __init__(self) -> None:
        self._batch: GenerationBatch | None = None

    def remember(self, batch: GenerationBatch) -> None:
        """Take a batch that is about to be trained on."""
        self._batch = None
        if float(batch.step_info().optimizer_steps).is_integer():
            # the batch's own dictionary is cut into micro-batches from here on
            batch.output = dict(batch.output)
            self._batch = batch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, once the batch was used for its last step."""
        batch = self._batch
        if batch is not None:
            step = batch.step_info()
            if state.global_step >= step.step + step.optimizer_steps:
                self._batch = None
                self.measure(batch)

    def measure(self, batch: GenerationBatch) -> None:
        """Report the change that the batch has made."""
        run_remeasure(batch, batch.before(), batch.output["advantages"])


class RunningChange(LossHook, Remeasuring):
    """The same without a pass of its own, where a batch is used for several optimizer steps.

    The later steps' mini-batches are scored in their own loss under a policy that has not been
    trained on these rollouts yet, but on others of the batch.
    """

    required = False

    def __init__(self, trainer: Any) -> None:
        LossHook.__init__(self)
        Remeasuring.__init__(self)
        self._trainer = trainer

    @staticmethod
    def possible(trainer: Any) -> bool:
        """Whether a batch is cut into the mini-batches of several optimizer steps."""
        args = trainer.args
        several = args.steps_per_generation > args.gradient_accumulation_steps
        once = trainer.num_iterations == 1  # rollouts of a second iteration were trained on before
        fits = once and hasattr(trainer, "loss_type") and not fuses_loss(trainer)
        # passes that drop other units differ by more than an update does
        return several and fits and not has_dropout(trainer.model)

    def remember(self, batch: GenerationBatch) -> None:
        """Take a batch that TRL is about to cut into mini-batches."""
        batch.output[ROW] = torch.arange(len(batch.mask), device=batch.mask.device)
        self._parts: list[Tensor] = []
        self._seen = 0
        super().remember(batch)

    def waits_for(self, inputs: dict[str, Any]) -> bool:
        """Whether these rollouts come into the loss for the first time."""
        return self._batch is not None and ROW in inputs and self._seen < len(self._batch.mask)

    def forward(self, score: Callable[[], tuple[Any, Tensor | None]]) -> Any:
        """Compare what the loss scores with what was scored before the batch's first step."""
        inputs, out = self.take(), score()[0]
        batch = self._batch
        assert batch is not None, "waits_for has said so"
        rows = inputs[ROW].cpu()
        self._seen += len(rows)
        steps = batch.step_info()
        done = (self._trainer.state.global_step - steps.step) / steps.optimizer_steps
        if done > 0:
            now, before = Signals(out[0].detach(), out[1].detach()), batch.before()
            width = now.logprobs.shape[1]
            stats = change_stats(
                before.mask[rows, :width],
                before.logprobs[rows, :width],
                now.logprobs,
                before.entropies[rows, :width],
                now.entropies,
            )
            prompts, share = before.prompts[rows].double(), torch.full((len(rows), 1), done)
            self._parts.append(torch.cat([stats, share.double(), prompts[:, None]], dim=1))
        return out

    def measure(self, batch: GenerationBatch) -> None:
        """Report the change that the mini-batches have seen."""
        if not self._parts:
            return
        found = batch.processes.gather(torch.cat(self._parts))
        batch.log(
            report_running_change(batch.method, found[:, :4], found[:, 4], found[:, 5].long())
        )
