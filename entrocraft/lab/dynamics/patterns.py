"""Predicted against post-update change of entropy, for random choices of rollouts to keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from entrocraft.lab.dynamics.bench import Bench

__all__ = ["KINDS", "LEVELS", "draw_keep", "try_patterns"]

_SIGNED = ("gradient up", "gradient down", "logit up", "logit down")
KINDS = tuple(kind for signed in _SIGNED for kind in ("random", signed))
"""Every second pattern keeps a random part of the batch; the others keep, besides a random part,
all rollouts whose effect at that level is positive (up) or negative (down)."""

LEVELS = ("sign", "sampled", "logit", "gradient", "anchored")
"""The effect levels, and the gradient level about a measured step; see `Bench.read_anchored`."""


def draw_keep(kind: str, effects: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Which rollouts to keep, (B,) bool; the random part's share is itself uniform."""
    share = torch.rand((), generator=generator)
    keep = torch.rand(len(effects["logit"]), generator=generator) < share
    level, _, direction = kind.partition(" ")
    if direction:
        keep = keep | ((1.0 if direction == "up" else -1.0) * effects[level] > 0)
    return keep


def try_patterns(bench: Bench, count: int, seed: int, offset: int) -> list[dict[str, Any]]:
    """Make `count` real optimizer steps from the same state, each with another keep pattern.

    Args:
        bench: the held trainer.
        count: patterns.
        seed: of the patterns.
        offset: where to start in `KINDS`.

    Returns:
        One row per pattern: `kind`; `kept`, share of rollouts; `post_update`, measured change of
        the batch's token-mean entropy, nats per token; `pending`, what momentum and weight decay
        are predicted to bring to it; `clip`, factor of clipping by norm for the whole batch; and
        the prediction of each level: `gradient` and `anchored` in nats per token, pending change
        included; the others up to a gain and without it.
    """
    effects = {level: bench.effects(level) for level in LEVELS[:-1]}
    pending = bench.reading.response.pending
    anchor, anchored = bench.read_anchored()
    generator = torch.Generator().manual_seed(seed)
    before = bench.entropy()
    rows = []
    for index in range(count):
        kind = KINDS[(offset + index) % len(KINDS)]
        keep = draw_keep(kind, effects, generator)
        with bench.undone():
            bench.update(bench.advantages * keep.to(bench.advantages))
            after = bench.entropy()
        predicted = {level: float(values[keep].sum()) for level, values in effects.items()}
        predicted["gradient"] += pending
        predicted["anchored"] = anchor + float(((keep.double() - 0.5) * anchored).sum())
        row = {
            "kind": kind,
            "kept": float(keep.double().mean()),
            "post_update": after - before,
            "pending": pending,
            "clip": bench.reading.clip,
        }
        rows.append(row | predicted)
    return rows
