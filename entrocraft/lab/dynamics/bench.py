"""A trainer held before an optimizer step: real updates are made from there and undone."""

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
from entrocraft.lab.dynamics.gradient import (
    GradientReading,
    PolicyBatch,
    TokenPolicy,
    differentiate,
    evaluating,
    push,
    read_gradient,
)
from entrocraft.lab.dynamics.loss import accumulation_factor, loss_coefficients
from entrocraft.lab.dynamics.optimizer import step_response
from entrocraft.lab.dynamics.theorem import output_space_baseline
from entrocraft.rollouts import RolloutStats

__all__ = ["Bench"]


class Bench:
    """One rollout batch of the present policy, and updates on it that can be undone.

    The batch is drawn with a seed of its own, so the training that is held goes on afterwards
    unchanged.

    Args:
        trainer: TRL's GRPO or RLOO trainer in the middle of `train`, on one process.
        seed: of the prompts and of sampling.

    Attributes:
        advantages: (B,), of the estimator.
        mask: (B, T) bool, response tokens.
        logprob, sensitivity, baseline: (B, T) of the sampled tokens: log p_k, sensitivity at the
            logit level, and output-space baseline; zero outside the mask.
        stats: the batch as the rejection rules see it.
        passes: the batch in the trainer's micro-batches.
    """

    def __init__(self, trainer: Any, seed: int) -> None:
        self.trainer = trainer
        self.model = trainer.accelerator.unwrap_model(trainer.model)
        self.optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        self.policy = TokenPolicy(self.model, trainer.temperature)
        self._accumulation = int(trainer.args.gradient_accumulation_steps)
        self._batch, rewards = self._generate(seed)
        batch = self._batch
        self.advantages: Tensor = batch["advantages"]
        self.mask: Tensor = batch["completion_mask"].bool()
        if batch.get("tool_mask") is not None:
            self.mask = self.mask & batch["tool_mask"].bool()
        self.logprob, entropy, self.sensitivity, self.baseline = self._read_tokens()
        coefficients = loss_coefficients(trainer, batch, self.mask, self.logprob, entropy)
        columns = [
            part.chunk(self._accumulation) for part in (self.mask, coefficients, self.advantages)
        ]
        self.passes = [PolicyBatch(*row) for row in zip(self._inputs(), *columns, strict=True)]
        self.stats = RolloutStats(
            advantages=self.advantages.detach().cpu().double(),
            tokens=self.mask.sum(1).cpu().double(),
            logprob=self.logprob.sum(1).cpu().double(),
            entropy=entropy.sum(1).cpu().double(),
            sensitivity=self.sensitivity.sum(1).cpu().double(),
            rewards=rewards,
        )

    def entropy(self) -> float:
        """Token mean over this batch's tokens at the present parameters, nats per token."""
        total = 0.0
        with evaluating(self.model), torch.no_grad():
            for part in self.passes:
                total += float(self.policy(*part.inputs)[1].double()[part.mask].sum())
        return total / self.stats.total_tokens

    def effects(self, level: str) -> Tensor:
        """Predicted effect of each rollout, (B,) float64.

        At the level `gradient` on the next step, in nats per token; at the others up to a gain.
        """
        if level != "gradient":
            return rollout_effects(self.stats, level)
        return self.stats.advantages * self.reading.effects.sum(1).cpu().double()

    @cached_property
    def reading(self) -> GradientReading:
        """The next step as the gradient level predicts it, from the state that is held."""
        largest = self.trainer.args.max_grad_norm
        return read_gradient(self.policy, self.optimizer, self.passes, largest)

    def read_anchored(self) -> tuple[float, Tensor]:
        """Measure the step that keeps half of every rollout, and predict departures from it.

        With keep factors w the entropy H after the step is, to first order in w - 1/2,

            H(w) ~ H(1/2) + sum_j (w_j - 1/2) A_j sum_t c_jt <grad log pi(y_jt), u>,

        u the derivative of the optimizer's step, second moment and clipping by norm included,
        applied to the slope of the entropy *after* the step with w = 1/2.

        Returns:
            The measured change of the entropy by that step, nats per token, and the effects (B,)
            float64: the prediction for w is the former plus ``sum_j (w_j - 1/2) effect_j``.
        """
        before = self.entropy()
        with self.undone():
            gradient, clip = self.update(0.5 * self.advantages)
            change = self.entropy() - before
            slope, _ = differentiate(self.policy, self.passes)
        direction = step_response(
            self.optimizer, slope, gradient, through_second_moment=True
        ).direction
        if clip < 1.0:
            # a gradient that is cut to a fixed norm can only turn
            along = sum(float((u * gradient[p]).sum()) for p, u in direction.items())
            size = sum(float(g.square().sum()) for g in gradient.values())
            direction = {p: u - along / size * gradient[p] for p, u in direction.items()}
        coefficients = torch.cat([part.coefficients for part in self.passes])
        moved = push(self.policy, self.passes, direction)
        effects = self.advantages * (clip * coefficients * moved).sum(1)
        return change, effects.cpu().double()

    def update(
        self, advantages: Tensor, old_logprobs: Tensor | None = None, clip: float | None = None
    ) -> tuple[dict[Tensor, Tensor], float]:
        """Take one optimizer step on the batch, as the trainer does.

        Args:
            advantages: (B,), as the loss shall see them.
            old_logprobs: (B, T), of the policy that made the batch; None: the present one.
            clip: range of the probability ratio; None does not clip. Without `old_logprobs` the
                ratio is 1 and nothing is clipped.

        Returns:
            The gradient that the optimizer got, by parameter, and the factor by which clipping by
            norm had shortened it.
        """
        trainer = self.trainer
        batch = dict(self._batch, advantages=advantages)
        if old_logprobs is not None:
            if "old_logps" in batch:
                batch["old_logps"] = (old_logprobs * batch["completion_mask"]).sum(1)
            else:
                batch["old_per_token_logps"] = old_logprobs
        self.model.train()
        before = trainer.epsilon_low, trainer.epsilon_high
        trainer.epsilon_low = trainer.epsilon_high = 1e9 if clip is None else clip
        for part in split_tensor_dict(batch, self._accumulation):
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model_wrapped, part)
            trainer.accelerator.backward(accumulation_factor(trainer) * loss)
        trainer.epsilon_low, trainer.epsilon_high = before
        shortened, largest = 1.0, trainer.args.max_grad_norm
        if largest:
            norm = float(trainer.accelerator.clip_grad_norm_(self.model.parameters(), largest))
            shortened = min(1.0, largest / max(norm, 1e-12))
        self.optimizer.step()
        gradient = {p: p.grad for p in self.model.parameters() if p.grad is not None}
        self.optimizer.zero_grad()  # lets go of the tensors, which stay as they are
        return gradient, shortened

    def old_logprobs(self) -> Tensor:
        """Log-probabilities (B, T) as the trainer's own loss computes them, at present."""
        compute = self.trainer._get_per_token_logps_and_entropies
        with torch.no_grad(), self.trainer.compute_loss_context_manager(), evaluating(self.model):
            return torch.cat([compute(self.model, *part.inputs)[0] for part in self.passes])

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

    # ------------------------------------------------------------------ the batch

    def _generate(self, seed: int) -> tuple[dict[str, Any], Tensor]:
        """Draw a generation batch and score it; raw rewards (B,) are summed over functions."""
        trainer, data = self.trainer, self.trainer.train_dataset
        count = trainer.args.per_device_train_batch_size * self._accumulation
        generations = trainer.num_generations
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            chosen = torch.randperm(len(data))[: count // generations].tolist()
            self.model.train()
            batch = trainer._generate_and_score_completions(
                [data[index] for index in chosen for _ in range(generations)]
            )
        logged = trainer._logs["rewards"].values()
        return batch, torch.tensor([list(rewards)[-count:] for rewards in logged]).double().sum(0)

    def _read_tokens(self) -> Tensor:
        """(4, B, T): log p_k, entropy, logit-level sensitivity, output-space baseline."""
        parts: list[Tensor] = []
        masks = self.mask.chunk(self._accumulation)
        with evaluating(self.model), torch.no_grad():
            for inputs, mask in zip(self._inputs(), masks, strict=True):
                logits, tokens = self.policy.logits(*inputs)[mask], inputs[0][:, -inputs[2] :][mask]
                known = token_statistics(logits, tokens, self.policy.temperature)
                _, baseline = output_space_baseline(logits, tokens, self.policy.temperature)
                part = baseline.new_zeros((4, *mask.shape))
                part[:, mask] = torch.stack([*known, baseline])
                parts.append(part)
        return torch.cat(parts, dim=1)

    def _inputs(self) -> list[tuple[Tensor, Tensor, int]]:
        """Arguments of the policy's forward for each micro-batch."""
        parts: Any = split_tensor_dict(self._batch, self._accumulation)
        return [
            (
                torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1),
                torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1),
                part["completion_ids"].shape[1],
            )
            for part in parts
        ]
