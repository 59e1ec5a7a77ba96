"""The weight of each token in TRL's loss, obtained from the trainer's own loss function.

It depends on the loss type, its normalizers, importance sampling, clipping, entropy quantile and
version of TRL. So the loss is evaluated on log-probabilities that stand for the model's, without a
pass through the model, and differentiated in them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_tensor_dict


def loss_coefficients(
    trainer: Any, output: dict[str, Any], mask: Tensor, logprobs: Tensor, entropies: Tensor
) -> Tensor:
    """Coefficients c (B, T) of one optimizer step's loss, 0 outside the mask.

    In the log-probability of token t of rollout j the loss has the slope ``-A_j c_jt``. The
    trainer's `_compute_loss` is called without the model, once for each of its
    `gradient_accumulation_steps`; metrics and attributes that it sets are put back.

    Args:
        trainer: TRL's, on one process.
        output: generation batch as TRL scored it.
        mask: (B, T) bool, response tokens.
        logprobs, entropies: (B, T), nats, of the policy that is about to be updated.

    Raises:
        RuntimeError: a loss that does not use TRL's log-probabilities of tokens.
    """
    # the sign matters to clipping and to some losses, the size does not
    signs = torch.where(output["advantages"] < 0, -1.0, 1.0).to(output["advantages"].dtype)
    micro_batches = trainer.args.gradient_accumulation_steps
    tokens = (part.chunk(micro_batches) for part in (signs, logprobs, entropies))
    slopes = []
    with _without_trace(trainer):
        for part, a, *own in zip(split_tensor_dict(output, micro_batches), *tokens, strict=True):
            # with an advantage of 0 the slope is that of KL terms and the like
            slope, other = (_slope(trainer, part | {"advantages": x}, *own) for x in (a, 0 * a))
            slopes.append((other - slope) * a[:, None])
    return torch.cat(slopes).masked_fill(~mask, 0.0) * accumulation_factor(trainer)


def accumulation_factor(trainer: Any) -> float:
    """What the Trainer multiplies the loss of a micro-batch by; 1 if the loss does it itself."""
    declared = getattr(trainer, "loss_is_scaled_for_ga", None)
    scaled = trainer.compute_loss_func is not None if declared is None else bool(declared)
    return 1.0 if scaled else 1.0 / trainer.args.gradient_accumulation_steps


def _slope(trainer: Any, inputs: dict[str, Any], logprobs: Tensor, entropies: Tensor) -> Tensor:
    """Derivative of TRL's loss of one micro-batch in the log-probabilities, (b, T)."""
    logprobs = logprobs.detach().clone().requires_grad_()

    def stand_in(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        # later versions of TRL expect a third value, and ask whether to compute it
        more = (torch.zeros((), device=logprobs.device),) if "compute_aux_loss" in kwargs else ()
        return (logprobs, entropies.detach(), *more)

    trainer._get_per_token_logps_and_entropies = stand_in
    with torch.enable_grad():
        loss = trainer._compute_loss(trainer.model, inputs)
    return torch.autograd.grad(loss, logprobs)[0]


@contextmanager
def _without_trace(trainer: Any) -> Iterator[None]:
    """Let a loss be evaluated for its slopes alone."""
    before = dict(vars(trainer))
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    try:
        yield
    finally:
        vars(trainer).clear()
        vars(trainer).update(before)
