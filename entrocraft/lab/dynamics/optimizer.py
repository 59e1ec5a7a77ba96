"""What an optimizer makes of a gradient, to first order.

An optimizer turns the gradient g of the loss into a step of the parameters, at once and, through
its momentum, over the steps that follow. To first order in g every supported optimizer moves a
quantity with slope h by ``-<u, g>`` in total, where ``u = lr * D^-1 h`` is one direction in
parameter space and D is the optimizer's preconditioner (Adam: ``sqrt(v_hat) + eps``; SGD: 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from entrocraft.trl.optimizer import innermost_optimizer

__all__ = ["StepResponse", "step_response"]

Gradient = Mapping[Tensor, Tensor]


@dataclass(frozen=True)
class StepResponse:
    """How one optimizer's next steps move a quantity, in the quantity's unit.

    With g the gradient that the next step gets, the quantity changes at the next step by
    ``share * (-<direction, g>) + momentum_share * pending + decay`` and, if nothing else came,
    by ``-<direction, g> + pending`` in the end, weight decay aside.

    Attributes:
        direction: parameter -> u, of the parameter's shape, float32.
        share: part of a gradient's total effect that the very next step shows.
        pending: total that earlier gradients will still bring by momentum.
        momentum_share: part of `pending` that the next step shows.
        decay: what weight decay does at the next step.
        momentum: factor by which what is under way shrinks from step to step.
    """

    direction: dict[Tensor, Tensor]
    share: float
    pending: float
    momentum_share: float
    decay: float
    momentum: float


def step_response(
    optimizer: torch.optim.Optimizer, slope: Gradient, gradient: Gradient | None = None
) -> StepResponse:
    """Linearize the optimizer's next step along `slope`.

    Args:
        optimizer: torch's SGD, Adam or AdamW, of any setting.
        slope: parameter -> h, the gradient of the quantity; parameters that are missing, or that
            the optimizer does not hold, are taken as fixed.
        gradient: parameter -> about the gradient that comes next. Adam's second moment gets it
            before the step is taken: without it, parameters that were hardly ever trained (rows of
            rare tokens) would seem to move without bound.

    Raises:
        ValueError: an optimizer that is not known here, or one that holds none of the parameters.
    """
    linearize = _rule_of(optimizer)
    direction: dict[Tensor, Tensor] = {}
    # summed over groups whose momenta may differ: what the next step shows, and the total
    shown_now = shown_total = still_now = still_total = decay = 0.0
    shares = []
    momentum = 0.0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            h = slope.get(parameter)
            if h is None:
                continue
            h = h.detach().float()
            g = None if gradient is None else gradient.get(parameter)
            part = linearize(group, optimizer.state.get(parameter, {}), parameter, h, g)
            direction[parameter] = part.direction
            size = 1.0 if g is None else abs(float((part.direction * g.float()).sum()))
            shares.append(part.share)
            shown_now, shown_total = shown_now + part.share * size, shown_total + size
            still_now += part.momentum_share * part.pending
            still_total += part.pending
            decay += part.decay
            momentum = max(momentum, part.momentum)
    if not direction:
        raise ValueError(
            "the optimizer holds none of the parameters that the slope was taken of; pass the "
            "optimizer that trains this policy"
        )
    return StepResponse(
        direction=direction,
        share=shown_now / shown_total if shown_total else sum(shares) / len(shares),
        pending=still_total,
        momentum_share=still_now / still_total if still_total else 1.0 - momentum,
        decay=decay,
        momentum=momentum,
    )


@dataclass(frozen=True)
class _Part:
    """`StepResponse` of one parameter."""

    direction: Tensor
    share: float
    pending: float
    momentum_share: float
    decay: float
    momentum: float


def _rule_of(optimizer: Any) -> Any:
    optimizer = innermost_optimizer(optimizer)
    if isinstance(optimizer, torch.optim.AdamW):
        return _adamw
    if isinstance(optimizer, torch.optim.Adam):
        return _adam
    if isinstance(optimizer, torch.optim.SGD):
        return _sgd
    raise ValueError(
        f"the effect level 'gradient' knows torch's SGD, Adam and AdamW, not "
        f"{type(optimizer).__name__}; train with one of them (in TRL: optim='adamw_torch'), or "
        "choose effect='logit'"
    )


def _adamw(group: Any, state: Any, parameter: Tensor, h: Tensor, g: Tensor | None) -> _Part:
    return _adam(group, state, parameter, h, g, decoupled=True)


def _adam(
    group: Any,
    state: Any,
    parameter: Tensor,
    h: Tensor,
    g: Tensor | None,
    decoupled: bool = False,
) -> _Part:
    decoupled = decoupled or bool(group.get("decoupled_weight_decay", False))
    lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
    sign = -1.0 if group.get("maximize") else 1.0
    beta1, beta2 = (float(beta) for beta in group["betas"])
    step = float(state["step"]) + 1 if "step" in state else 1.0
    mean = state["exp_avg"].float() if "exp_avg" in state else torch.zeros_like(h)
    square = state["exp_avg_sq"].float() if "exp_avg_sq" in state else torch.zeros_like(h)
    coupled = 0.0 if decoupled else weight_decay
    incoming = None if g is None else sign * g.float() + coupled * parameter.detach().float()
    if incoming is not None:
        square = beta2 * square + (1 - beta2) * incoming.square()
    if group.get("amsgrad") and "max_exp_avg_sq" in state:
        square = torch.maximum(square, state["max_exp_avg_sq"].float())
    size = (square / (1 - beta2**step)).sqrt() + float(group["eps"])
    direction = lr * h / size
    share = (1 - beta1) / (1 - beta1**step)
    decay = -share * coupled * float((direction * parameter.detach().float()).sum())
    if decoupled:
        decay -= lr * weight_decay * float((h * parameter.detach().float()).sum())
    return _Part(
        direction=sign * direction,
        share=share,
        pending=-beta1 / (1 - beta1) * float((direction * mean).sum()),
        momentum_share=share,
        decay=decay,
        momentum=beta1,
    )


def _sgd(group: Any, state: Any, parameter: Tensor, h: Tensor, g: Tensor | None) -> _Part:
    lr, momentum = float(group["lr"]), float(group["momentum"])
    sign = -1.0 if group.get("maximize") else 1.0
    weight_decay, nesterov = float(group["weight_decay"]), bool(group["nesterov"])
    buffer = state.get("momentum_buffer")
    # the first step takes the gradient undamped
    enters = 1 - float(group["dampening"]) if buffer is not None and momentum else 1.0
    # a gradient of 1 makes the buffer `enters`, and that shrinks by `momentum` a step
    if nesterov:
        first, total = 1 + momentum * enters, 1 + momentum * enters / (1 - momentum)
    else:
        first, total = enters, enters / (1 - momentum)
    pending = 0.0
    if buffer is not None:
        left = momentum**2 if nesterov else momentum
        pending = -lr * left / (1 - momentum) * float((h * buffer.float()).sum())
    return _Part(
        direction=sign * lr * total * h,
        share=first / total,
        pending=pending,
        momentum_share=1 - momentum,
        decay=-weight_decay * lr * first * float((h * parameter.detach().float()).sum()),
        momentum=momentum,
    )
