"""The gradient level: what a token does to policy entropy through shared parameters.

To first order, and with the optimizer's preconditioner D and learning rate, a rollout batch with
the loss ``-sum_j A_j sum_t c_jt log pi(y_jt)`` changes the mean entropy Hbar in total by

    sum_j A_j sum_t c_jt <grad log pi(y_jt), u>,    u = lr * D^-1 grad Hbar

(`entrocraft.lab.dynamics.optimizer` has u, and what momentum and weight decay add). One backward pass gives
grad Hbar, a second one the gradient that is about to enter D, and one forward-mode pass along u
gives the bracket for all tokens at once. Forward mode keeps the small differences that two passes
with bf16 weights would lose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from entrocraft.lab.dynamics.optimizer import StepResponse, step_response

__all__ = ["GradientEffect", "GradientReading", "PolicyBatch"]


@dataclass(frozen=True)
class PolicyBatch:
    """Rollouts of one pass.

    Attributes:
        inputs: arguments of the policy's forward.
        mask: (b, T), true on response tokens.
        coefficients: (b, T), c_jt: how much of an advantage of 1 the loss puts on this token's
            log-probability, in the average step that the batch is used for; for a token-mean loss
            1 over the number of response tokens.
        advantages: (b,).
    """

    inputs: tuple[Any, ...]
    mask: Tensor
    coefficients: Tensor
    advantages: Tensor


@dataclass(frozen=True)
class GradientReading:
    """What the gradient level says of one rollout batch.

    Attributes:
        sensitivity: (b, T) for each pass: N times c_jt times the bracket, in nats per unit of
            advantage, N the response tokens of all passes; so that effects are A_j / N * sum_t.
        response: of the optimizer, for the entropy.
        clip: factor by which clipping by norm shortens the gradient of the whole batch.
    """

    sensitivity: list[Tensor]
    response: StepResponse
    clip: float


class GradientEffect:
    """Predicts each token's effect on entropy through all trainable parameters.

    Args:
        policy: module whose forward gives (log-probabilities, entropies), (b, T) each, of the
            sampled tokens, differentiable in its parameters.
        optimizer: that trains the policy: torch's SGD, Adam or AdamW.
        max_grad_norm: the trainer's clipping by norm; None or 0 does not clip.
        refresh: decisions that share one direction u; more is cheaper (a forward-mode pass each,
            two backward passes once in `refresh`) and less exact.
        reduce: stats a tensor over the processes that share the batch.

    Raises:
        ValueError: refresh below 1, or no trainable parameter.
    """

    def __init__(
        self,
        policy: nn.Module,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None = None,
        refresh: int = 1,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if refresh < 1:
            raise ValueError(f"refresh must be at least 1 decision, got {refresh}")
        self.policy = policy
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.refresh = refresh
        self.reduce = reduce or (lambda tensor: tensor)
        self.parameters = {
            name: value for name, value in policy.named_parameters() if value.requires_grad
        }
        if not self.parameters:
            raise ValueError("the policy has no trainable parameter, so no update can move it")
        self._slope: dict[Tensor, Tensor] = {}
        self._gradient: dict[Tensor, Tensor] = {}
        self._clip = 1.0
        self._age = 0

    def read(self, batches: Sequence[PolicyBatch]) -> GradientReading:
        """Read one rollout batch, given as the passes it fits into.

        Neither parameters, nor `.grad`, nor the state of any generator are changed.
        """
        device = next(iter(self.parameters.values())).device
        local = torch.tensor(float(sum(int(batch.mask.sum()) for batch in batches)), device=device)
        total = max(float(self.reduce(local)), 1.0)
        if not self._slope or self._age >= self.refresh:
            self._differentiate(batches, total)
            self._age = 0
        self._age += 1
        response = step_response(self.optimizer, self._slope, self._gradient)
        sensitivity = [
            total * self._clip * batch.coefficients * push
            for batch, push in zip(batches, self.push(batches, response.direction), strict=True)
        ]
        return GradientReading(sensitivity, response, self._clip)

    def _differentiate(self, batches: Iterable[PolicyBatch], total: float) -> None:
        """Gradients of the mean entropy and of the plain loss, by one forward pass."""
        leaves = list(self.parameters.values())
        slope = [torch.zeros_like(leaf, dtype=torch.float32) for leaf in leaves]
        gradient = [torch.zeros_like(leaf, dtype=torch.float32) for leaf in leaves]
        with _generators_kept(leaves[0].device):
            for batch in batches:
                with torch.enable_grad():
                    logprobs, entropies = self.policy(*batch.inputs)
                    mask = batch.mask.to(entropies.dtype)
                    entropy = (entropies * mask).sum() / total
                    weight = batch.coefficients * batch.advantages[:, None] * mask
                    loss = -(weight.detach() * logprobs).sum()
                _add(slope, torch.autograd.grad(entropy, leaves, retain_graph=True, **_UNUSED))
                _add(gradient, torch.autograd.grad(loss, leaves, **_UNUSED))
        slope = [self.reduce(part) for part in slope]
        gradient = [self.reduce(part) for part in gradient]
        self._clip = 1.0
        if self.max_grad_norm:
            norm = torch.stack([part.square().sum() for part in gradient]).sum().sqrt()
            self._clip = min(1.0, self.max_grad_norm / max(float(norm), 1e-12))
        self._slope = dict(zip(leaves, slope, strict=True))
        self._gradient = {
            leaf: self._clip * part for leaf, part in zip(leaves, gradient, strict=True)
        }

    def push(
        self, batches: Iterable[PolicyBatch], direction: dict[Tensor, Tensor]
    ) -> Iterator[Tensor]:
        """Yield <grad log pi, u> of every token, (b, T) float32 for each pass, 0 outside the mask.

        Args:
            batches: passes.
            direction: parameter -> u, of the parameter's shape.
        """
        # tangents near 1 keep 16-bit arithmetic away from its limits
        largest = max(float(part.abs().max()) for part in direction.values())
        scale = largest if 0 < largest < float("inf") else 1.0
        modes = [(module, module.training) for module in self.policy.modules()]
        self.policy.eval()
        try:
            for batch in batches:
                with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
                    duals = {
                        name: forward_ad.make_dual(
                            leaf.detach(), (direction[leaf] / scale).to(leaf.dtype)
                        )
                        for name, leaf in self.parameters.items()
                        if leaf in direction
                    }
                    logprobs, _ = functional_call(self.policy, duals, batch.inputs)
                    tangent = forward_ad.unpack_dual(logprobs).tangent
                    push = torch.zeros_like(logprobs) if tangent is None else tangent
                    push = torch.where(batch.mask.bool(), push.float(), 0.0)
                yield push * scale
        finally:
            for module, training in modes:
                module.training = training


_UNUSED: dict[str, Any] = {"allow_unused": True}


def _add(stats: list[Tensor], parts: Iterable[Tensor | None]) -> None:
    for total, part in zip(stats, parts, strict=True):
        if part is not None:
            total += part.float()


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Dropout in a pass of ours must not shift the draws of the trainer."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
