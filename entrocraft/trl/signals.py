"""Signals: log-probability, entropy and sensitivity per token, captured from a pass of TRL.

TRL computes log-probabilities (and entropies) of the completions in one method. Where it does so
before the update anyway, the pass is listened to; where it does not, one pass without gradients is
made. The logit-level sensitivity comes from the same pass: a hook on the backbone takes its hidden
states and applies the language-model head in chunks over positions, so no (B, T, V) tensor appears.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from entrocraft.effects import TOKEN_LEVELS, TokenStatistics, token_statistics
from entrocraft.trl.head import BackboneTap

__all__ = ["SignalRecorder", "Signals", "rows_of"]

_LARGEST_MEAN_DISAGREEMENT = 0.1

# what TRL hands to its log-prob pass besides the tokens, as far as the batch has it
_MODEL_INPUTS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


@dataclass(frozen=True)
class Signals:
    """Per-token signals of one process, (B, T) each, in nats.

    `sensitivity` is None unless the effect level needs it.
    """

    logprobs: Tensor
    entropies: Tensor
    sensitivity: Tensor | None


class SignalRecorder:
    """Listens to TRL's log-prob passes of one trainer.

    Args:
        level: effect level of the hosted method, or None.
        dropout: whether the policy drops out in training. Then TRL's own pass is not listened to:
            two passes that drop other units differ by more than an update does.
    """

    def __init__(self, level: str | None, dropout: bool = False) -> None:
        self.level = level
        self.dropout = dropout
        self._open = False
        self._first: Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[SignalRecorder]:
        """Record the first pass of the policy without gradients inside this block."""
        self._open, self._first = True, None
        try:
            yield self
        finally:
            self._open = False

    def wants(self, trainer: Any, model: nn.Module) -> bool:
        """Whether to listen to this pass: the policy's, without gradients, the first."""
        policy = model is trainer.model or model is getattr(trainer, "model_wrapped", None)
        policy = policy and not (self.dropout and model.training)
        return self._open and self._first is None and policy and not torch.is_grad_enabled()

    def record(self, trainer: Any, compute: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run TRL's pass `compute(*args, **kwargs)`, with entropies, and keep what it says."""
        bound = _bind(args, kwargs)
        kwargs = dict(kwargs, compute_entropy=True)
        sensitivity: Tensor | None = None
        if self.level in TOKEN_LEVELS:
            tap = _SensitivityTap(trainer, bound["input_ids"], bound["logits_to_keep"])
            with tap:
                out = compute(*args, **kwargs)
            sensitivity = tap.sensitivity(out[0])
        else:
            out = compute(*args, **kwargs)
        if out[1] is None:
            raise RuntimeError(
                "TRL returned no entropies although asked to; entrocraft knows TRL 1.5 to 1.16: "
                "pin one of them"
            )
        self._first = Signals(out[0].detach(), out[1].detach(), sensitivity)
        return out

    def heard(self, output: dict[str, Any]) -> Signals | None:
        """Return what was recorded if it was the old-log-prob pass of this very batch, else None.

        A pass of the reference policy that shares the model (an adapter switched off) looks the
        same from outside; the batch's own old log-probabilities tell them apart.
        """
        if self._first is None:
            return None
        logprobs = self._first.logprobs
        if (old := output.get("old_per_token_logps")) is not None:
            same = torch.equal(old, logprobs)
        elif (old := output.get("old_logps")) is not None:
            same = torch.equal(old, (logprobs * output["completion_mask"]).sum(1))
        else:
            same = False
        return self._first if same else None

    def ask(self, trainer: Any, output: dict[str, Any], sensitivity: bool = True) -> Signals:
        """Make one pass without gradients over a batch that TRL scored.

        `sensitivity` False leaves the level's sensitivities out.
        """
        training, level = trainer.model.training, self.level
        self.level = level if sensitivity else None
        trainer.model.eval()  # dropout would draw from the generator that the plain trainer uses
        try:
            with torch.no_grad(), self.listening():
                trainer._get_per_token_logps_and_entropies(
                    trainer.model,
                    torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                    torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                    output["completion_ids"].size(1),
                    batch_size=trainer.args.per_device_train_batch_size,
                    **{name: output[name] for name in _MODEL_INPUTS if name in output},
                )
        finally:
            trainer.model.train(training)
            self.level = level
        assert self._first is not None
        return self._first


class _SensitivityTap(BackboneTap):
    """Turns hidden states into token sensitivities at the logit level."""

    def __init__(self, trainer: Any, input_ids: Tensor, keep: int) -> None:
        super().__init__(trainer, keep)
        self._tokens = input_ids[:, -keep:]
        self._parts: list[TokenStatistics] = []

    def read(self, hidden: Tensor) -> None:
        start = sum(len(part.logprob) for part in self._parts)
        tokens = self._tokens[start : start + len(hidden)]
        self._parts.append(token_statistics(hidden, tokens, self.temperature, self.project))

    def sensitivity(self, logprobs: Tensor) -> Tensor:
        """Join the parts, and check them by TRL's own log-probabilities of the same tokens."""
        mine = torch.cat([part.logprob for part in self._parts])
        valid = torch.isfinite(logprobs) & (logprobs != 0)
        gap = (mine - logprobs)[valid].abs()
        if len(gap) and float(gap.mean()) > _LARGEST_MEAN_DISAGREEMENT:
            raise RuntimeError(
                f"token sensitivities of {type(self.model).__name__} cannot be trusted: "
                "log-probabilities recomputed from its head differ from TRL's by "
                f"{float(gap.mean()):.2g} nats on average (the model transforms its logits in a "
                "way that is not known here); use effect='sampled'"
            )
        return torch.cat([part.sensitivity for part in self._parts])


def rows_of(output: dict[str, Any], rows: Any) -> dict[str, Any]:
    """Some rollouts of a generation batch; what has no row for each rollout belongs to all."""
    count = len(output["advantages"])
    return {
        name: value[rows]
        if isinstance(value, Tensor) and value.ndim and len(value) == count
        else value
        for name, value in output.items()
    }


def _bind(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Name the leading arguments of TRL's method, whose wrappers differ over versions."""
    names = ("model", "input_ids", "attention_mask", "logits_to_keep")
    return dict(zip(names, args, strict=False)) | kwargs
