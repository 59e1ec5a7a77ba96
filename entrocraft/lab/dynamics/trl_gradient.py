"""The gradient level inside TRL's trainers.

What a token weighs in the update depends on TRL's loss type, its normalizers over micro-batches,
steps and ranks, importance-sampling level, clipping, entropy quantile and version. So the trainer's
own loss is asked: it is evaluated on log-probabilities that stand for the model's, and
differentiated in them. No pass through the model is needed for that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from entrocraft.lab.dynamics.gradient import GradientEffect, PolicyBatch
from entrocraft.lab.dynamics.optimizer import StepResponse
from entrocraft.trl.head import TokenPolicy
from entrocraft.trl.signals import _LARGEST_MEAN_DISAGREEMENT, _MODEL_INPUTS, Signals

__all__ = ["GradientReader", "loss_coefficients"]

_REMEDY = "use effect='logit'"


class GradientReader:
    """Reads token sensitivities at the gradient level from generation batches of one trainer.

    The optimizer, its learning rate and momentum, the clipping by norm, and the loss's advantage
    term are taken in; what else the loss holds (KL to a reference, entropy bonus) is left out.

    The direction in parameter space is taken anew at every `refresh`-th decision, counted from the
    start of training: a run that resumes at such a decision goes on as if never interrupted.
    Resumed in between, it starts with a fresh direction, as the old one's policy is gone.

    Args:
        trainer: TRL's `GRPOTrainer`, `RLOOTrainer` or a subclass.
        refresh: decisions that share one direction.

    Raises:
        ValueError: a trainer whose parameters, kernels or model cannot be differentiated this way.
    """

    def __init__(self, trainer: Any, refresh: int = 1) -> None:
        if refresh < 1:
            raise ValueError(f"refresh must be at least 1 decision, got {refresh}")
        _refuse(trainer)
        self.refresh = refresh
        self._effect: GradientEffect | None = None
        self._step, self._decisions_in_step, self._cycle = -1, 0, -1
        self._trusted = False

    def check(self, trainer: Any, output: dict[str, Any]) -> None:
        """Refuse a generation batch that cannot be read; nothing is exchanged between ranks.

        The first batch of a run costs two passes of one micro-batch, without gradients.

        Raises:
            ValueError: images or other inputs besides text, no optimizer yet, or a model whose
                log-probabilities are not what its backbone and head give.
        """
        if other := [name for name in _MODEL_INPUTS if output.get(name) is not None]:
            raise ValueError(
                f"the effect level 'gradient' reads text alone; this batch also holds "
                f"{', '.join(other)}; {_REMEDY}"
            )
        if trainer.optimizer is None:
            raise ValueError(
                "the effect level 'gradient' needs the optimizer, which exists once train() has "
                "begun"
            )
        if not self._trusted:
            _compare(trainer, output)
            self._trusted = True

    def passes(
        self, trainer: Any, output: dict[str, Any], mask: Tensor, signals: Signals
    ) -> list[PolicyBatch]:
        """Cut this process's rows (B_local, T) into passes of the trainer's micro-batch size.

        Every rank has to call this, as the loss exchanges its normalizers and metrics.

        Raises:
            ValueError: a loss that is no function of TRL's per-token log-probabilities, or one
                that trains tokens outside the mask.
        """
        coefficients = loss_coefficients(trainer, output, mask, signals)
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        keep = output["completion_ids"].size(1)
        return [
            PolicyBatch(
                inputs=(ids[rows], attention[rows], keep),
                mask=mask[rows],
                coefficients=coefficients[rows],
                advantages=output["advantages"][rows],
            )
            for rows in _passes(trainer, output)
        ]

    def read(self, trainer: Any, passes: list[PolicyBatch]) -> tuple[Tensor, StepResponse]:
        """Return the (B_local, T) sensitivity, nats per unit of advantage, and the response.

        Every rank has to call this once per decision. Neither the model, nor its gradients, nor
        the state of any generator are changed.

        Raises:
            ValueError: an optimizer that is not known, or a model with operations that have no
                forward-mode derivative.
        """
        self._effect = self._current(trainer)
        # 16-bit floats without loss scaling would lose small gradients; bfloat16 has the range
        autocast = trainer.accelerator.mixed_precision == "bf16"
        with trainer.accelerator.autocast() if autocast else nullcontext():
            try:
                reading = self._effect.read(passes)
            except (NotImplementedError, RuntimeError) as error:
                if "forward AD" not in str(error) and "jvp" not in str(error):
                    raise
                raise ValueError(
                    "the effect level 'gradient' needs forward-mode derivatives, and an operation "
                    f"of {type(trainer.model).__name__} has none ({str(error)[:200]}); load the "
                    f"model with plain PyTorch layers, or {_REMEDY}"
                ) from error
        return torch.cat(reading.sensitivity), reading.response

    def _current(self, trainer: Any) -> GradientEffect:
        """Keep the effect, with its direction, as long as the cycle of decisions lasts."""
        step, args = trainer.state.global_step, trainer.args
        restarted = step < self._step
        self._decisions_in_step = self._decisions_in_step + 1 if step == self._step else 0
        self._step = step
        micro_batches = args.steps_per_generation * trainer.num_iterations
        # a decision is due at step floor(d * micro_batches / accumulation): solved for d
        decision = -(-step * args.gradient_accumulation_steps // micro_batches)
        cycle = (decision + self._decisions_in_step) // self.refresh
        kept, self._cycle = cycle == self._cycle and not restarted, cycle
        if kept and self._effect is not None and self._effect.optimizer is trainer.optimizer:
            return self._effect
        accelerator = trainer.accelerator
        several = accelerator.num_processes > 1
        return GradientEffect(
            TokenPolicy(accelerator.unwrap_model(trainer.model), trainer.temperature),
            trainer.optimizer,
            max_grad_norm=args.max_grad_norm,
            refresh=self.refresh,
            reduce=(lambda part: accelerator.reduce(part, reduction="sum")) if several else None,
        )


def loss_coefficients(
    trainer: Any, output: dict[str, Any], mask: Tensor, signals: Signals
) -> Tensor:
    """What the trainer's loss puts on each token: (B_local, T), 0 outside the mask.

    The loss of the average optimizer step that this batch is used for has, in the log-probability
    of token t of rollout j, the slope ``-A_j c_jt`` over all ranks; c is returned. Of a batch that
    is only a part of a step, c is what it would be if it were the whole.

    Args:
        trainer: TRL's; its own `_compute_loss` is called for every micro-batch, without the model
            and without trace: metrics and attributes that it sets are put back.
        output: generation batch as TRL scored it.
        mask: (B_local, T), true on response tokens.
        signals: of the policy that is about to be updated; decides clipping.

    Raises:
        ValueError: a loss that is no function of TRL's per-token log-probabilities, or one that
            trains tokens outside the mask.
    """
    # the sign matters to clipping and to some losses, the size does not
    signs = torch.where(output["advantages"] < 0, -1.0, 1.0).to(output["advantages"].dtype)
    slopes = torch.zeros_like(signals.logprobs)
    # TRL shuffles later: rows of one prompt are spread here too, for losses (bnpo) that divide by
    # the tokens of their micro-batch
    count = len(_passes(trainer, output))
    with _without_trace(trainer):
        for rows in (slice(first, None, count) for first in range(count)):
            inputs = _rows_of(output, rows)
            voted = _slope(trainer, inputs | {"advantages": signs[rows]}, signals, rows)
            silent = _slope(trainer, inputs | {"advantages": 0 * signs[rows]}, signals, rows)
            slopes[rows] = (silent - voted) * signs[rows, None]
    outside = float(slopes.masked_fill(mask, 0.0).abs().max())
    if outside > 1e-6 * float(slopes.abs().max()):
        raise ValueError(
            f"the loss of {type(trainer).__name__} trains tokens outside the response mask, whose "
            "effect cannot be chosen (older TRL does so with loss_type='luspo' and "
            f"importance_sampling_level='token'; 'sequence' is right); change that, or {_REMEDY}"
        )
    args = trainer.args
    per_step = args.gradient_accumulation_steps / args.steps_per_generation
    if not _loss_is_scaled(trainer):
        per_step /= args.gradient_accumulation_steps
    # gradients are averaged over ranks
    return slopes.masked_fill(~mask, 0.0) * per_step / trainer.accelerator.num_processes


def _slope(trainer: Any, inputs: dict[str, Any], signals: Signals, rows: slice) -> Tensor:
    """Derivative of TRL's loss of one micro-batch in the log-probabilities, (b, T)."""
    logprobs = signals.logprobs[rows].detach().clone().requires_grad_()
    entropies = signals.entropies[rows].detach()

    def stand_in(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        # later versions of TRL expect a third value, and ask whether to compute it
        more = (torch.zeros((), device=logprobs.device),) if "compute_aux_loss" in kwargs else ()
        return (logprobs, entropies, *more)

    trainer._get_per_token_logps_and_entropies = stand_in
    with torch.enable_grad():
        loss = trainer._compute_loss(trainer.model, inputs)
        if loss.requires_grad:
            (slope,) = torch.autograd.grad(loss, logprobs, allow_unused=True)
            if slope is not None:
                return slope
    raise ValueError(
        f"the loss of {type(trainer).__name__} (loss_type="
        f"{getattr(trainer, 'loss_type', None)!r}) is no function of TRL's per-token "
        f"log-probabilities, so the effect level 'gradient' cannot weigh tokens; {_REMEDY}"
    )


@contextmanager
def _without_trace(trainer: Any) -> Iterator[None]:
    """Let a loss be evaluated for its slopes alone."""
    before = dict(vars(trainer))
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    for bonus in ("_entropy_bonus_enabled", "use_adaptive_entropy"):
        if hasattr(trainer, bonus):
            setattr(trainer, bonus, False)
    try:
        yield
    finally:
        vars(trainer).clear()
        vars(trainer).update(before)


def _loss_is_scaled(trainer: Any) -> bool:
    """Whether the loss itself is divided by the accumulation steps; else the Trainer does that."""
    declared = getattr(trainer, "loss_is_scaled_for_ga", None)
    return trainer.compute_loss_func is not None if declared is None else bool(declared)


def _passes(trainer: Any, output: dict[str, Any]) -> list[slice]:
    count, size = len(output["advantages"]), trainer.args.per_device_train_batch_size
    return [slice(start, start + size) for start in range(0, count, size)]


def _rows_of(output: dict[str, Any], rows: slice) -> dict[str, Any]:
    """One micro-batch; what has no row for each rollout belongs to all of them."""
    count = len(output["advantages"])
    return {
        name: value[rows]
        if isinstance(value, Tensor) and value.ndim and len(value) == count
        else value
        for name, value in output.items()
    }


def _compare(trainer: Any, output: dict[str, Any]) -> None:
    """Check the policy that will be differentiated by TRL's log-probabilities of some rollouts."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    rows = _passes(trainer, output)[0]
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)[rows]
    attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)[rows]
    keep = output["completion_ids"].size(1)
    modes = [(module, module.training) for module in trainer.model.modules()]
    trainer.model.eval()  # no two passes would agree with dropout
    try:
        with torch.no_grad(), trainer.accelerator.autocast():
            mine, _ = TokenPolicy(model, trainer.temperature)(ids, attention, keep)
            theirs = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, attention, keep
            )[0]
    finally:
        for module, training in modes:
            module.training = training
    gap = (mine - theirs)[output["completion_mask"][rows].bool()].abs()
    if len(gap) and not float(gap.mean()) <= _LARGEST_MEAN_DISAGREEMENT:
        raise ValueError(
            f"gradients of {type(model).__name__} cannot be trusted: log-probabilities recomputed "
            f"from its backbone and head differ from TRL's by {float(gap.mean()):.2g} nats on "
            "average (the model transforms its logits, or its prompt, in a way that is not known "
            "here); use effect='sampled'"
        )


def _refuse(trainer: Any) -> None:
    """Stop at the start where forward-mode derivatives of whole parameters cannot be had."""
    for name, flag in (("DeepSpeed", "is_deepspeed_enabled"), ("FSDP", "is_fsdp_enabled")):
        if getattr(trainer, flag, False):
            raise ValueError(
                f"the effect level 'gradient' needs whole parameters and optimizer states on every "
                f"rank, which {name} shards; train without it, or {_REMEDY}"
            )
    if getattr(trainer.args, "use_liger_kernel", False):
        raise ValueError(
            "the effect level 'gradient' needs forward-mode derivatives, which Liger kernels do "
            f"not have; set use_liger_kernel=False, or {_REMEDY}"
        )
    checkpointing = getattr(trainer.args, "gradient_checkpointing_kwargs", None) or {}
    if checkpointing.get("use_reentrant"):
        raise ValueError(
            "the effect level 'gradient' needs derivatives that reentrant checkpointing does not "
            "have; set gradient_checkpointing_kwargs={'use_reentrant': False}, or " + _REMEDY
        )
    attention = getattr(trainer.model.config, "_attn_implementation", None)
    if attention not in (None, "eager", "sdpa"):
        raise ValueError(
            "the effect level 'gradient' needs forward-mode derivatives, which the attention "
            f"{attention!r} does not have; load the model with attn_implementation='sdpa', or "
            f"{_REMEDY}"
        )
