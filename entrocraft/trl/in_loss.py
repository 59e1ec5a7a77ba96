"""Decisions inside TRL's loss: no pass over a batch but the one that trains on it.

On-policy with one update a batch, TRL scores completions for the first time in the loss itself. The
pressure then comes from the batch before. The loss's own forward pass scores each micro-batch, its
rollouts are drawn, and the loss goes on with the advantages of those that are kept. After the last
micro-batch, before the optimizer's step, the processes exchange their sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from entrocraft.adapter import gather_stats
from entrocraft.method import Decision, Method
from entrocraft.rollouts import RolloutStats
from entrocraft.trl.adapter import GenerationBatch, Signals
from entrocraft.trl.head import fuses_loss, has_dropout

__all__ = ["ROW", "LossDecision", "LossHook"]

ROW = "entrocraft_row"


class LossHook(ABC):
    """Comes between TRL's scoring of a micro-batch and its loss, which reads advantages after it.

    Subclasses say in `waits_for` which micro-batches they want, and in `forward` what they do.

    Attributes:
        required: whether a loss that does not score by TRL's method is an error.
    """

    required = True

    def __init__(self) -> None:
        self._inputs: dict[str, Any] | None = None

    @abstractmethod
    def waits_for(self, inputs: dict[str, Any]) -> bool:
        """Whether this is wanted in the loss of these rollouts."""

    @abstractmethod
    def forward(self, score: Callable[[], tuple[Any, Tensor | None]]) -> Any:
        """TRL's log-prob pass inside the loss.

        Args:
            score: makes the pass; returns what TRL expects and the tokens' sensitivity.
        """

    def loss(self, compute: Callable[..., Tensor], model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss `compute(model, inputs)` with this hook."""
        # a copy: with several iterations TRL comes back to the same dictionary
        self._inputs = dict(inputs)
        try:
            loss = compute(model, self._inputs)
            scored = self._inputs is None
        finally:
            self._inputs = None
        if self.required and not scored:
            raise RuntimeError(
                "the loss of this trainer does not score tokens by TRL's own method, so nothing "
                "could be decided inside it; give EntropyController(..., extra_pass=True)"
            )
        return loss

    @property
    def inside(self) -> bool:
        """Whether TRL is computing a loss now and has not asked for log-probabilities yet."""
        return self._inputs is not None

    def take(self) -> dict[str, Any]:
        """The rollouts that TRL's loss is about to read, once."""
        inputs, self._inputs = self._inputs, None
        assert inputs is not None, "TRL is computing a loss"
        return inputs


class LossDecision(LossHook):
    """Decides on a generation batch micro-batch by micro-batch, inside TRL's loss.

    Args:
        finished: called with each batch and the decision on it; None where no response token was
            left.
    """

    def __init__(self, finished: Callable[[GenerationBatch, Decision | None], None]) -> None:
        super().__init__()
        self._finished = finished
        self._batch: GenerationBatch | None = None
        self._error: ValueError | None = None

    @staticmethod
    def possible(trainer: Any, method: Method) -> bool:
        """Whether the loss sees each rollout once, before the optimizer's step, token by token."""
        args = trainer.args
        if method.remeasure and has_dropout(trainer.model):
            return False  # dropout noise would hide the change by an update
        one_update = args.steps_per_generation <= args.gradient_accumulation_steps
        once = one_update and trainer.num_iterations == 1
        return once and hasattr(trainer, "loss_type") and not fuses_loss(trainer)

    def begin(self, batch: GenerationBatch) -> None:
        """Take a batch that was not scored; what TRL cuts up next is its `output`."""
        batch.output["advantages"] = batch.exact_advantages()
        batch.output[ROW] = torch.arange(len(batch.mask), device=batch.mask.device)
        # a copy: TRL empties the dictionary that it cuts up
        batch.output = dict(batch.output)
        self._batch = batch
        self._chosen = batch.method.begin(batch.step_info())
        empty = batch.mask.new_zeros(batch.mask.shape, dtype=torch.float32)
        batch.signals = Signals(empty, empty.clone())
        self._parts: list[tuple[Tensor, RolloutStats, Tensor]] = []
        self._seen, self._error = 0, None

    def waits_for(self, inputs: dict[str, Any]) -> bool:
        """Whether these are rollouts of a batch that is being decided on."""
        return self._batch is not None and ROW in inputs

    def forward(self, score: Callable[[], tuple[Any, Tensor | None]]) -> Any:
        """Put advantages where TRL's loss will read them."""
        inputs, batch = self.take(), self._batch
        assert batch is not None, "waits_for has said so"
        out, sensitivity = score()
        rows, given = inputs[ROW], inputs["advantages"]
        now = Signals(out[0].detach(), out[1].detach(), sensitivity)
        width = now.logprobs.shape[1]
        batch.signals.logprobs[rows, :width] = now.logprobs.float()
        batch.signals.entropies[rows, :width] = now.entropies.float()
        # the parts of all processes have numbers of their own
        number = batch.processes.index + batch.processes.count * len(self._parts)
        try:
            whole = batch.output["advantages"]
            stats = batch.part({**inputs, "advantages": whole[rows]}, now, rows)
            weights, kept = batch.method.decide_part(stats, self._chosen, number)
            self._parts.append((rows.cpu(), stats, weights))
            # a trainer of the user's may have weighed them since, or spread them over tokens
            shape = (-1, *(1,) * (given.ndim - 1))
            active = (stats.advantages != 0).to(given.device).view(shape)
            weights, kept = weights.to(given), kept.to(given)
            inputs["advantages"] = torch.where(
                active, given * weights.view(shape), kept.view(shape)
            )
            whole[rows] = kept.to(whole)
        except ValueError as error:  # all processes stop together, before the optimizer's step
            self._error = self._error or error
        self._seen += len(rows)
        if self._seen == len(batch.mask):
            self._finish(batch)
        return out

    def _finish(self, batch: GenerationBatch) -> None:
        """Tell the method of the whole batch."""
        self._batch = None
        local, weights = batch.processes.together(self._joined)
        stats = batch.complete(gather_stats(batch.processes, local))
        weights, decision = batch.processes.gather(weights), None
        if stats.total_tokens > 0:
            decision = batch.method.finish(stats, batch.step_info(), self._chosen, weights)
            batch.log(decision.metrics)
        self._finished(batch, decision)

    def _joined(self) -> tuple[RolloutStats, Tensor]:
        """Sums and weights of this process's rollouts, in their order in the batch."""
        if self._error is not None:
            raise self._error
        order = torch.cat([rows for rows, _, _ in self._parts]).argsort()

        def joined(name: str) -> Any:
            values = [getattr(stats, name) for _, stats, _ in self._parts]
            return None if values[0] is None else torch.cat(values)[order]

        names = ("advantages", "tokens", "logprob", "entropy", "sensitivity")
        weights = torch.cat([weights for _, _, weights in self._parts])[order]
        return RolloutStats(**{name: joined(name) for name in names}), weights
