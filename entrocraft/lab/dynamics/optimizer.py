"""The next step of Adam and SGD, to first order in the gradient that it gets.

Both steps are written as functions of the gradient, and autograd takes their derivative.
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
    """How the next optimizer step moves a quantity: by ``-<direction, g> + pending``.

    Attributes:
        direction: parameter -> u, of the parameter's shape, float32.
        pending: what momentum and weight decay bring, in the quantity's unit.
    """

    direction: dict[Tensor, Tensor]
    pending: float


def step_response(
    optimizer: Any, slope: Gradient, gradient: Gradient, through_second_moment: bool = False
) -> StepResponse:
    """Linearize the optimizer's next step along `slope`; nothing is changed.

    Args:
        optimizer: torch's SGD, Adam or AdamW.
        slope: parameter -> h, the gradient of the quantity.
        gradient: parameter -> the gradient that comes next, or about it; it enters Adam's second
            moment, which would else leave parameters that were hardly ever trained without bound.
            A parameter that either lacks takes no part.
        through_second_moment: differentiate Adam's second moment too, at `gradient`; else it is
            held, and the step is linear in the gradient from 0 on.

    Raises:
        ValueError: an optimizer that is not known here, or one that holds none of the parameters.
    """
    optimizer = innermost_optimizer(optimizer)
    adam = isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))
    groups = optimizer.param_groups
    if not (adam or isinstance(optimizer, torch.optim.SGD)) or any(
        group.get("amsgrad") or group["maximize"] for group in groups
    ):
        raise ValueError(
            "only the steps of torch's SGD, Adam and AdamW, without amsgrad and maximize, can be "
            f"predicted, not those of {type(optimizer).__name__}; set trainer.optim=adamw_torch"
        )
    direction: dict[Tensor, Tensor] = {}
    pending = 0.0
    for group in groups:
        for parameter in group["params"]:
            if parameter not in slope or parameter not in gradient:
                continue
            state = optimizer.state.get(parameter, {})
            value, h = parameter.detach().double(), slope[parameter].double()
            g = gradient[parameter].detach().double().requires_grad_()
            with torch.enable_grad():
                if adam:
                    decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get(
                        "decoupled_weight_decay", False
                    )
                    squared = g if through_second_moment else g.detach()
                    step = _adam_step(group, state, value, g, squared, decoupled)
                else:
                    step = _sgd_step(group, state, value, g)
                moved = (h * step).sum()
            (derivative,) = torch.autograd.grad(moved, g)
            direction[parameter] = -derivative.float()
            pending += float(moved.detach() - (derivative * g.detach()).sum())
    if not direction:
        raise ValueError(
            "the optimizer holds none of the parameters that the slope was taken of; pass the "
            "optimizer that trains this policy"
        )
    return StepResponse(direction, pending)


def _adam_step(
    group: Any, state: Any, value: Tensor, g: Tensor, squared: Tensor, decoupled: bool
) -> Tensor:
    """Change of a parameter; `squared` is the gradient as it enters the second moment."""
    lr, decay, (beta1, beta2) = float(group["lr"]), float(group["weight_decay"]), group["betas"]
    coupled = 0.0 if decoupled else decay * value
    count = float(state["step"]) + 1 if state else 1.0
    mean = state["exp_avg"].double() if state else 0.0
    square = state["exp_avg_sq"].double() if state else 0.0
    mean = (beta1 * mean + (1 - beta1) * (g + coupled)) / (1 - beta1**count)
    square = (beta2 * square + (1 - beta2) * (squared + coupled).square()) / (1 - beta2**count)
    # where nothing was ever trained the root has no derivative, and none is needed
    step = -lr * mean / (square.clamp(min=1e-60).sqrt() + group["eps"])
    return step - lr * decay * value if decoupled else step


def _sgd_step(group: Any, state: Any, value: Tensor, g: Tensor) -> Tensor:
    lr, momentum = float(group["lr"]), float(group["momentum"])
    g = g + float(group["weight_decay"]) * value
    buffer = state.get("momentum_buffer")
    # the first step takes the gradient undamped
    damped = g if buffer is None else momentum * buffer.double() + (1 - group["dampening"]) * g
    if momentum:
        g = g + momentum * damped if group["nesterov"] else damped
    return -lr * g
