"""A trainer paused before an optimizer step: real updates are applied and rolled back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

from entrocraft.effects import rollout_effects, token_statistics
from entrocraft.lab.dynamics import gradient
from entrocraft.lab.dynamics.loss import accumulation_factor, loss_coefficients
from entrocraft.lab.dynamics.optimizer import step_response
from entrocraft.lab.dynamics.theorem import output_space_baseline
from entrocraft.rollouts import RolloutStats


class Bench:
    """One rollout batch of the present policy, and updates on it that can be undone.

    Args:
        trainer: TRL's GRPO or RLOO trainer in the middle of `train`, on one process.
        seed: of the batch alone: the training that is held goes on afterwards unchanged.

    Attributes:
        advantages, mask: (B,), of the estimator, and (B, T) bool, response tokens.
        logprob, sensitivity, baseline: (B, T) float64 of the sampled tokens, zero outside the mask:
            log p_k, sensitivity at the logit level, and output-space baseline.
        stats, passes: the batch as rejection rules see it, and in the trainer's micro-batches.
    """

    def __init__(self, trainer: Any, seed: int) -> None:
        self.trainer = trainer
        self.model = trainer.accelerator.unwrap_model(trainer.model)
        self.optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        self.policy = gradient.TokenPolicy(self.model, trainer.temperature)
        self._count = int(trainer.args.gradient_accumulation_steps)
        self._batch, rewards = self._generate(seed)
        self.advantages: Tensor = self._batch["advantages"]
        self.mask: Tensor = self._batch["completion_mask"].bool()
        parts: list[Any] = split_tensor_dict(self._batch, self._count)
        inputs = []
        for part in parts:
            ids = torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)
            attention = torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1)
            inputs.append((ids, attention, part["completion_ids"].shape[1]))
        masks = self.mask.chunk(self._count)
        read = torch.cat([self._read(*row) for row in zip(inputs, masks, strict=True)], dim=1)
        self.logprob, entropy, self.sensitivity, self.baseline = read
        known = self.mask, self.logprob, entropy
        self._coefficients = loss_coefficients(trainer, self._batch, *known)
        values = (self.mask, self._coefficients, self.advantages)
        chunks = (value.chunk(self._count) for value in values)
        self.passes = [gradient.PolicyBatch(*row) for row in zip(inputs, *chunks, strict=True)]
        self.stats = RolloutStats(
            advantages=self.advantages.cpu().double(),
            tokens=self.mask.sum(1).cpu().double(),
            logprob=self.logprob.sum(1).cpu(),
            entropy=entropy.sum(1).cpu(),
            sensitivity=self.sensitivity.sum(1).cpu(),
            rewards=rewards,
        )

    def entropy(self) -> float:
        """Token mean over this batch's tokens at the present parameters, nats per token."""
        total = 0.0
        with gradient.evaluating(self.model), torch.no_grad():
            for part in self.passes:
                total += float(self.policy(*part.inputs)[1].double()[part.mask].sum())
        return total / self.stats.total_tokens

    def effects(self, level: str) -> Tensor:
        """Predicted effects (B,) float64: at `gradient` in nats per token, else up to a gain."""
        if level != "gradient":
            return rollout_effects(self.stats, level)
        return self.stats.advantages * self.reading.effects.sum(1).cpu().double()

    @cached_property
    def reading(self) -> gradient.GradientReading:
        """The next step as the gradient level predicts it, from the state that is held."""
        largest = self.trainer.args.max_grad_norm
        return gradient.read_gradient(self.policy, self.optimizer, self.passes, largest)

    def read_anchored(self) -> tuple[float, Tensor]:
        """Measure the step that keeps half of every rollout, and predict departures from it.

        Returned are the measured change, nats per token, and the effects (B,) float64. With keep
        factors w the entropy changes, to first order in w - 1/2, by the measured change
        ``+ sum_j (w_j - 1/2) A_j sum_t c_jt <grad log pi(y_jt), u>``, u the derivative of the
        optimizer's step, second moment and clipping by norm included, applied to the slope of the
        entropy *after* the step with w = 1/2.
        """
        before = self.entropy()
        with self.undone():
            got, clip = self.update(0.5 * self.advantages)
            change = self.entropy() - before
            slope, _ = gradient.differentiate(self.policy, self.passes)
        direction = step_response(self.optimizer, slope, got, through_second_moment=True).direction
        if clip < 1.0:
            # a gradient that is cut to a fixed norm can only turn
            along = sum(float((u * got[p]).sum()) for p, u in direction.items())
            size = sum(float(g.square().sum()) for g in got.values())
            direction = {p: u - along / size * got[p] for p, u in direction.items()}
        moved = gradient.push(self.policy, self.passes, direction)
        effects = self.advantages * (clip * self._coefficients * moved).sum(1)
        return change, effects.cpu().double()

    def update(
        self, advantages: Tensor, old_logprobs: Tensor | None = None, clip: float | None = None
    ) -> tuple[dict[Tensor, Tensor], float]:
        """Take one optimizer step on the batch with these advantages (B,), as the trainer does.

        With `old_logprobs` (B, T) the ratio is to them, in the range `clip`, or in any if None.
        Returned are the optimizer's gradient, and the factor of clipping by norm in it.
        """
        trainer, batch = self.trainer, dict(self._batch, advantages=advantages)
        before = trainer.epsilon_low, trainer.epsilon_high
        if old_logprobs is not None:  # as GRPO and as RLOO call it
            batch["old_per_token_logps"] = old_logprobs
            batch["old_logps"] = (old_logprobs * batch["completion_mask"]).sum(1)
            trainer.epsilon_low = trainer.epsilon_high = 1e9 if clip is None else clip
        self.model.train()
        for part in split_tensor_dict(batch, self._count):
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model_wrapped, part)
            trainer.accelerator.backward(accumulation_factor(trainer) * loss)
        trainer.epsilon_low, trainer.epsilon_high = before
        shortened, largest = 1.0, trainer.args.max_grad_norm
        if largest:
            norm = float(trainer.accelerator.clip_grad_norm_(self.model.parameters(), largest))
            shortened = min(1.0, largest / max(norm, 1e-12))
        self.optimizer.step()
        got = {p: p.grad for p in self.model.parameters() if p.grad is not None}
        self.optimizer.zero_grad()  # lets go of the tensors, which stay as they are
        return got, shortened

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Take back, at the end of the block, what its updates did to model and optimizer."""
        parameters = [p.detach().clone() for p in self.model.parameters()]
        state = copy.deepcopy(self.optimizer.state_dict())
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, before in zip(self.model.parameters(), parameters, strict=True):
                    parameter.copy_(before)
            self.optimizer.zero_grad()
            self.optimizer.load_state_dict(state)

    def _generate(self, seed: int) -> tuple[dict[str, Any], Tensor]:
        """Draw a generation batch and score it; raw rewards (B,) are summed over functions."""
        trainer, data = self.trainer, self.trainer.train_dataset
        count = trainer.args.per_device_train_batch_size * self._count
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            chosen = torch.randperm(len(data))[: count // trainer.num_generations].tolist()
            rows = [data[index] for index in chosen for _ in range(trainer.num_generations)]
            self.model.train()
            batch = trainer._generate_and_score_completions(rows)
        logged = trainer._logs["rewards"].values()
        return batch, torch.tensor([list(rewards)[-count:] for rewards in logged]).double().sum(0)

    @torch.no_grad()
    def _read(self, inputs: tuple[Tensor, Tensor, int], mask: Tensor) -> Tensor:
        """(4, b, T): log p_k, entropy, logit-level sensitivity, output-space baseline."""
        with gradient.evaluating(self.model):
            logits = self.policy.logits(*inputs)[mask]
        tokens = inputs[0][:, -inputs[2] :][mask]
        known = token_statistics(logits, tokens, self.policy.temperature)
        _, baseline = output_space_baseline(logits, tokens, self.policy.temperature)
        part = baseline.new_zeros((4, *mask.shape))
        part[:, mask] = torch.stack([*known, baseline])
        return part
