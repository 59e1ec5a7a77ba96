"""The gradient level: what a token does to policy entropy through the network's parameters.

To first order, an optimizer step on the loss ``-sum_j A_j sum_t c_jt log pi(y_jt)`` changes the
mean entropy H by

    sum_j A_j sum_t c_jt <grad log pi(y_jt), u> + pending,

u the optimizer's step applied to grad H (`entrocraft.lab.dynamics.optimizer`). Two backward passes
give grad H and the gradient that enters Adam's second moment; one forward-mode pass along u gives
the bracket for all tokens at once. Forward mode keeps the small differences that two passes with
bfloat16 weights would lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from entrocraft.lab.dynamics.optimizer import StepResponse, step_response


class TokenPolicy(nn.Module):
    """Log-probabilities and entropies of the last tokens, differentiable in the parameters.

    Like TRL's own loss it holds the logits of one pass, (b, T, V): choose `micro_batch` by it.
    `temperature` divides the logits, as in sampling.
    """

    def __init__(self, model: Any, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, ids: Tensor, attention: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """(b, L) ids and mask -> log-probabilities and entropies (b, keep) of the last tokens."""
        log_p = (self.logits(ids, attention, keep) / self.temperature).log_softmax(-1)
        # masked before the product, as 0 * -inf has no derivative either
        entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)
        return log_p.gather(-1, ids[:, -keep:, None])[..., 0], entropy

    def logits(self, ids: Tensor, attention: Tensor, keep: int) -> Tensor:
        """(b, keep, V) float32 logits that predict the last tokens, before the temperature."""
        output = self.model(input_ids=ids, attention_mask=attention, use_cache=False)
        return output.logits[:, -keep - 1 : -1].float()


@dataclass(frozen=True)
class PolicyBatch:
    """Rollouts of one pass: arguments of the policy, response tokens (b, T), advantages (b,).

    The coefficients c_jt (b, T) are minus the loss's slope in a token's log-probability per unit of
    advantage; of a token-mean loss 1 over the number of response tokens.
    """

    inputs: tuple[Any, ...]
    mask: Tensor
    coefficients: Tensor
    advantages: Tensor


@dataclass(frozen=True)
class GradientReading:
    """Prediction of the next step: it changes the entropy by ``sum_jt A_j effects_jt + pending``.

    Effects are (B, T), nats per token of the batch and unit of advantage; `response` holds the
    pending change; `clip` is the factor by which clipping by norm shortens the batch's gradient.
    """

    effects: Tensor
    response: StepResponse
    clip: float


def read_gradient(
    policy: nn.Module,
    optimizer: Any,
    batches: Sequence[PolicyBatch],
    max_grad_norm: float | None = None,
) -> GradientReading:
    """Predict the next step on a rollout batch, given as the passes it fits into.

    Neither parameters, nor `.grad`, nor the state of any generator are changed; dropout is off.
    `policy` is any module like `TokenPolicy`; a `max_grad_norm` of None or 0 does not clip.
    """
    slope, gradient = differentiate(policy, batches)
    clip = 1.0
    if max_grad_norm:
        norm = torch.stack([part.square().sum() for part in gradient.values()]).sum().sqrt()
        clip = min(1.0, max_grad_norm / max(float(norm), 1e-12))
    response = step_response(optimizer, slope, {p: clip * g for p, g in gradient.items()})
    coefficients = clip * torch.cat([batch.coefficients for batch in batches])
    return GradientReading(coefficients * push(policy, batches, response.direction), response, clip)


def differentiate(
    policy: nn.Module, batches: Sequence[PolicyBatch]
) -> tuple[Mapping[Any, Tensor], Mapping[Any, Tensor]]:
    """Gradients of the token-mean entropy and of the loss, by parameter, float32."""
    leaves = [value for value in policy.parameters() if value.requires_grad]
    zero = {leaf: torch.zeros_like(leaf, dtype=torch.float32) for leaf in leaves}
    slope, gradient = zero, {leaf: part.clone() for leaf, part in zero.items()}
    total = max(1, sum(int(batch.mask.sum()) for batch in batches))
    with evaluating(policy), torch.enable_grad():
        for batch in batches:
            logprobs, entropies = policy(*batch.inputs)
            weight = batch.coefficients * batch.advantages[:, None]
            entropy = torch.where(batch.mask, entropies, 0.0).sum() / total
            loss = -torch.where(batch.mask, weight * logprobs, 0.0).sum()
            for sums, value in ((slope, entropy), (gradient, loss)):
                parts = torch.autograd.grad(
                    value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for leaf, part in zip(leaves, parts, strict=True):
                    sums[leaf] += part
    return slope, gradient


def push(
    policy: nn.Module, batches: Sequence[PolicyBatch], direction: Mapping[Any, Tensor]
) -> Tensor:
    """<grad log pi, u> of every token, (B, T) float32, 0 outside the mask; u is `direction`."""
    # tangents near 1 keep 16-bit arithmetic away from its limits
    scale = max(float(part.abs().max()) for part in direction.values()) or 1.0
    parts = []
    with evaluating(policy), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for batch in batches:
            with forward_ad.dual_level():
                duals = {
                    name: forward_ad.make_dual(leaf.detach(), (direction[leaf] / scale).to(leaf))
                    for name, leaf in policy.named_parameters()
                    if leaf in direction
                }
                logprobs, _ = functional_call(policy, duals, batch.inputs)
                tangent = forward_ad.unpack_dual(logprobs).tangent
            parts.append(torch.where(batch.mask, tangent.float(), 0.0) * scale)
    return torch.cat(parts)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block; every submodule gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
