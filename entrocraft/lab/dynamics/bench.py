"""A trainer held before an optimizer step: real updates are made from there and taken back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

from entrocraft.effects import rollout_effects, token_statistics
from entrocraft.lab.dynamics.anchor import step_direction
from entrocraft.lab.dynamics.gradient import GradientEffect, GradientReading, PolicyBatch
from entrocraft.lab.dynamics.theorem import output_space_baseline
from entrocraft.lab.dynamics.trl_gradient import loss_coefficients
from entrocraft.rollouts import RolloutStats
from entrocraft.trl.head import TokenPolicy, finish_logits
from entrocraft.trl.signals import Signals

__all__ = ["Bench"]


class Bench:
    """One rollout batch of the present policy, and updates on it that can be undone.

    The batch is drawn with a seed of its own: the training that is held goes on afterwards as if
    nobody had looked.

    Args:
        trainer: TRL's GRPO or RLOO trainer in the middle of `train`, on one process.
        seed: of the prompts and of sampling.

    Attributes:
        advantages: (B,), of the estimator.
        rewards: (B,).
        mask: (B, T) bool, response tokens.
        logprob, opposition, baseline: (B, T) of the sampled tokens: log p_k, S_k - M and the
            output-space baseline, zero outside the mask.
        stats: the batch as the acceptance rules see it.
    """

    def __init__(self, trainer: Any, seed: int) -> None:
        self.trainer = trainer
        self.model = trainer.accelerator.unwrap_model(trainer.model)
        self.optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        self.policy = TokenPolicy(self.model, trainer.temperature)
        self._batch, self.rewards = self._generate(seed)
        batch = self._batch
        self.advantages: Tensor = batch["advantages"]
        self.mask: Tensor = batch["completion_mask"].bool()
        if batch.get("tool_mask") is not None:
            self.mask = self.mask & batch["tool_mask"].bool()
        self.logprob, entropy, self.opposition, self.baseline = self._read_tokens()
        signals = Signals(self.logprob, entropy, None)
        self._coefficients = loss_coefficients(trainer, batch, self.mask, signals)
        self.stats = RolloutStats(
            advantages=self.advantages.detach().cpu().double(),
            tokens=self.mask.sum(1).cpu().double(),
            logprob=self.logprob.sum(1).cpu().double(),
            entropy=entropy.sum(1).cpu().double(),
            rewards=self.rewards.cpu().double(),
        )

    def entropy(self) -> float:
        """Token mean over this batch's tokens at the present parameters, nats per token."""
        total = 0.0
        with self._evaluating(), torch.no_grad():
            for inputs, mask in zip(self._inputs(), self._parts(self.mask), strict=True):
                total += float(self.policy(*inputs)[1].double()[mask].sum())
        return total / float(self.mask.sum())

    def effects(self, level: str, reading: GradientReading | None = None) -> Tensor:
        """Predicted total effect of each rollout, (B,) float64; see `entrocraft.effects`.

        At the level `gradient`, which needs a reading, it is in nats; at the others up to a gain.
        """
        if level in ("sign", "sampled"):
            return rollout_effects(self.stats, level)
        if level == "logit":
            sensitivity = -self.opposition
        else:
            assert reading is not None, "the gradient level is read first"
            sensitivity = torch.cat(reading.sensitivity)
        summed = (sensitivity * self.mask).sum(1).cpu().double()
        return self.stats.advantages * summed / self.stats.total_tokens

    def read_gradient(self) -> GradientReading:
        """Read the gradient level at the present policy; nothing is tuned, nothing is changed."""
        effect = GradientEffect(self.policy, self.optimizer, self.trainer.args.max_grad_norm)
        return effect.read(self._passes())

    def read_anchored(self) -> tuple[float, Tensor]:
        """Read what the next step does if the batch is kept by halves, and what rollouts change.

        Returns:
            The measured change of the entropy by that step, nats per token, and the effects (B,)
            float64: the predicted change is the former plus ``sum_j (w_j - 1/2) effect_j``. See
            `entrocraft.lab.dynamics.anchor`.
        """
        before = self.entropy()
        with self.undone():
            gradient, clip = self.update(torch.full_like(self.advantages, 0.5))
            change = self.entropy() - before
            slope = self._entropy_slope()
        direction = step_direction(self.optimizer, slope, gradient)
        if clip < 1.0:
            # a gradient that is cut to a fixed norm can only turn
            shared = [p for p in direction if p in gradient]
            along = sum(float((direction[p] * gradient[p]).sum()) for p in shared)
            size = sum(float(g.square().sum()) for g in gradient.values())
            for p in shared:
                direction[p] = direction[p] - along / size * gradient[p]
        passes = self._passes()
        push = torch.cat(list(GradientEffect(self.policy, self.optimizer).push(passes, direction)))
        effects = self.advantages * (clip * self._coefficients * push).sum(1)
        return change, effects.cpu().double()

    def update(
        self,
        keep: Tensor,
        advantages: Tensor | None = None,
        old_logprobs: Tensor | None = None,
        clip: float | None = None,
    ) -> tuple[dict[Tensor, Tensor], float]:
        """Take one optimizer step on the batch, as the trainer does.

        Args:
            keep: (B,), factor of each rollout's advantage.
            advantages: (B,), in the place of the estimator's.
            old_logprobs: (B, T), of the policy that made the batch; None: the present one.
            clip: range of the probability ratio; None does not clip. Without `old_logprobs` the
                ratio is 1 and nothing is clipped.

        Returns:
            The gradient that the optimizer got, by parameter, and the factor by which clipping by
            norm had shortened it.
        """
        trainer = self.trainer
        chosen = self.advantages if advantages is None else advantages
        batch = dict(self._batch, advantages=chosen * keep.to(chosen))
        if old_logprobs is not None:
            if "old_logps" in batch:
                batch["old_logps"] = (old_logprobs * batch["completion_mask"]).sum(1)
            else:
                batch["old_per_token_logps"] = old_logprobs
        self.model.train()
        with self._clipped_at(clip):
            for part in split_tensor_dict(batch, self._passes_per_update):
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(trainer.model_wrapped, part)
                trainer.accelerator.backward(loss)
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
        with torch.no_grad(), self.trainer.compute_loss_context_manager(), self._evaluating():
            parts = [
                self.trainer._get_per_token_logps_and_entropies(self.model, *inputs)[0]
                for inputs in self._inputs()
            ]
        return torch.cat(parts)

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

    @property
    def _passes_per_update(self) -> int:
        return int(self.trainer.args.gradient_accumulation_steps)

    def _generate(self, seed: int) -> tuple[dict[str, Any], Tensor]:
        trainer, data = self.trainer, self.trainer.train_dataset
        count = trainer.args.per_device_train_batch_size * self._passes_per_update
        generations = trainer.num_generations
        heard: list[Tensor] = []
        functions = trainer.reward_funcs
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        try:
            trainer.reward_funcs = [_overheard(function, heard) for function in functions]
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                chosen = torch.randperm(len(data))[: count // generations].tolist()
                rows = [data[index] for index in chosen for _ in range(generations)]
                self.model.train()
                batch = trainer._generate_and_score_completions(rows)
        finally:
            trainer.reward_funcs = functions
        return batch, torch.stack(heard).sum(0)

    def _read_tokens(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log p_k, entropy, S_k - M and the output-space baseline, (B, T) each."""
        columns: list[Tensor] = []
        temperature = self.trainer.temperature
        with self._evaluating(), torch.no_grad():
            for (ids, attention, keep), mask in zip(
                self._inputs(), self._parts(self.mask), strict=True
            ):
                output = self.policy.model.base_model(
                    input_ids=ids, attention_mask=attention, use_cache=False
                )
                hidden = output.last_hidden_state[:, -keep - 1 : -1][mask]
                tokens = ids[:, -keep:][mask]
                known = token_statistics(hidden, tokens, temperature, project=self._project)
                _, baseline = output_space_baseline(hidden, tokens, temperature, self._project)
                values = torch.stack([known.logprob, known.entropy, -known.sensitivity, baseline])
                part = values.new_zeros((4, *mask.shape))
                part[:, mask] = values
                columns.append(part)
        logprob, entropy, opposition, baseline = torch.cat(columns, dim=1)
        return logprob, entropy, opposition, baseline

    def _entropy_slope(self) -> dict[Tensor, Tensor]:
        """Gradient of the batch's mean entropy at the present parameters."""
        leaves = [p for p in self.model.parameters() if p.requires_grad]
        slope = {leaf: torch.zeros_like(leaf, dtype=torch.float32) for leaf in leaves}
        total = self.mask.sum()
        with self._evaluating(), torch.enable_grad():
            for inputs, mask in zip(self._inputs(), self._parts(self.mask), strict=True):
                entropy = self.policy(*inputs)[1][mask].sum() / total
                parts = torch.autograd.grad(entropy, leaves, allow_unused=True)
                for leaf, part in zip(leaves, parts, strict=True):
                    if part is not None:
                        slope[leaf] += part
        return slope

    def _project(self, hidden: Tensor) -> Tensor:
        model = self.policy.model
        return finish_logits(model, model.get_output_embeddings()(hidden)).float()

    def _inputs(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        parts: Any = split_tensor_dict(self._batch, self._passes_per_update)
        for part in parts:
            yield (
                torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1),
                torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1),
                part["completion_ids"].shape[1],
            )

    def _parts(self, values: Tensor) -> Iterator[Tensor]:
        yield from values.chunk(self._passes_per_update)

    def _passes(self) -> list[PolicyBatch]:
        values = (self.mask, self._coefficients, self.advantages)
        columns = (self._inputs(), *map(self._parts, values))
        return [PolicyBatch(*row) for row in zip(*columns, strict=True)]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    @contextmanager
    def _clipped_at(self, clip: float | None) -> Iterator[None]:
        trainer = self.trainer
        before = trainer.epsilon_low, trainer.epsilon_high
        trainer.epsilon_low = trainer.epsilon_high = 1e9 if clip is None else clip
        try:
            yield
        finally:
            trainer.epsilon_low, trainer.epsilon_high = before


def _overheard(function: Callable[..., list[float]], heard: list[Tensor]) -> Callable[..., Any]:
    def score(*args: Any, **kwargs: Any) -> list[float]:
        scores = function(*args, **kwargs)
        heard.append(torch.tensor(scores, dtype=torch.float64))
        return scores

    return score
