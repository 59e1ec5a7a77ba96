"""From the rows of a study to its few numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from entrocraft.lab.dynamics.trials import LEVELS

Rows = list[dict[str, Any]]

UNFITTED = ("gradient", "anchored")
"""Levels that predict the change itself, in nats; the others up to a gain and an offset."""

_OLD_NAMES = {"authority": "reach", "drift": "pending", "realised": "post_update"}


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a dynamics.json; names of the first version are replaced by today's."""
    return json.loads(
        Path(path).read_text(encoding="utf-8"),
        object_pairs_hook=lambda pairs: {_OLD_NAMES.get(key, key): value for key, value in pairs},
    )


def explained(
    predicted: np.ndarray, y: np.ndarray, mean: np.ndarray | None = None, axis: int = -1
) -> Any:
    """R2 = 1 - sum (y - prediction)^2 / sum (y - mean)^2; NaN if y does not vary about its mean."""
    mean = y.mean(axis, keepdims=True) if mean is None else mean
    spread = ((y - mean) ** 2).sum(axis)
    return 1.0 - ((y - predicted) ** 2).sum(axis) / np.where(spread > 0, spread, np.nan)


def sign_agreement(predicted: np.ndarray, y: np.ndarray, axis: int = -1) -> Any:
    """Share of changes whose direction was predicted."""
    return np.mean(np.sign(predicted) == np.sign(y), axis=axis)


def leave_one_out(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Each y from the least-squares line a + b x of the others (Allen's PRESS)."""
    columns = np.column_stack([np.ones_like(x), x])[:, : 1 if np.ptp(x) == 0 else 2]
    q, _ = np.linalg.qr(columns)
    left = 1.0 - (q**2).sum(1)
    return y - (y - q @ (q.T @ y)) / np.where(left > 1e-12, left, np.nan)


def predictions_of(frame: pd.DataFrame, level: str) -> np.ndarray:
    """Changes as a level predicts them, nats per token.

    `gradient` and `anchored` predict as they are. The others know neither their gain nor what
    momentum brings: a line per stage is fitted to all its points but the one that is predicted.
    """
    x, y = (frame[name].to_numpy(float, copy=True) for name in (level, "post_update"))
    if level not in UNFITTED:
        for here in frame.groupby("stage").indices.values():
            x[here] = leave_one_out(x[here], y[here])
    return x


def summarize(rows: dict[str, Rows]) -> dict[str, Rows]:
    """Summaries of the parts `patterns`, `theorem` and `reach`, each as rows by stage.

    The stage is a step or "all". `_low` and `_high` are of 95 % intervals, `r2_within` is about the
    mean of each stage, `probe` is whole and against plain, mean and standard error over the holds.
    """
    return {
        part: [
            {"stage": stage} | row
            for stage, frame in _by_stage(rows[part])
            for row in compute(frame).to_dict("records")
        ]
        for part, compute in (("patterns", _patterns), ("theorem", _theorem), ("reach", _reach))
    }


def _by_stage(rows: Rows) -> list[tuple[Any, pd.DataFrame]]:
    frame = pd.DataFrame(rows, columns=None if rows else ["stage"])
    stages: list[tuple[Any, Any]] = [(int(s), part) for s, part in frame.groupby("stage")]
    return [*stages, ("all", frame)] if len(stages) > 1 else stages


def _patterns(frame: pd.DataFrame) -> pd.DataFrame:
    changes = frame["post_update"]
    y, means = changes.to_numpy(), changes.groupby(frame["stage"]).transform("mean").to_numpy()
    found = []
    for level in LEVELS:
        predicted = predictions_of(frame, level)
        row = {"level": level, "n": len(y), "r2_within": float(explained(predicted, y, means))}
        measures: dict[str, Any] = {"r2": explained, "sign": sign_agreement}
        for name, measure in measures.items():
            low, high = _interval(measure, predicted, y)
            row |= {name: float(measure(predicted, y)), f"{name}_low": low, f"{name}_high": high}
        found.append(row)
    return pd.DataFrame(found)


def _interval(measure: Any, predicted: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """95 % interval of a measure, by drawing pairs with replacement."""
    how: dict[str, Any] = {"paired": True, "vectorized": True, "method": "percentile"}
    how |= {"n_resamples": 2000, "rng": np.random.default_rng(0)}
    found = bootstrap((predicted, y), measure, **how).confidence_interval
    return float(found.low), float(found.high)


def _theorem(frame: pd.DataFrame) -> pd.DataFrame:
    total = frame.drop(columns=["stage", "step"]).groupby("advantage", sort=False).sum()
    tokens, sequences = total["tokens"].clip(lower=1), total["sequences"].clip(lower=1)
    shares = {
        "share_tokens": total["tokens_met"] / tokens,
        "share_sequences": total["sequences_met"] / sequences,
        "share_sequences_opposed": total["sequences_opposed"] / sequences,
        "share_sequences_all_tokens": total["sequences_all_met"] / sequences,
    }
    return total[["tokens", "sequences"]].assign(**shares).reset_index()


def _reach(frame: pd.DataFrame) -> pd.DataFrame:
    same = ["step", "clip", "updates"]
    plain = frame.loc[frame["rule"] == "plain", [*same, "probe"]]
    frame = frame.merge(plain, how="left", on=same, suffixes=("", "_plain"))
    frame["probe_against_plain"] = frame["probe"] - frame["probe_plain"]
    columns = {"n": ("kept", "size"), "kept": ("kept", "mean")}
    for name in ("probe", "probe_against_plain"):
        columns |= {name: (name, "mean"), f"{name}_stderr": (name, "sem")}
    keys = ["rule", "level", "direction", "clip", "updates"]
    return frame.groupby(keys, sort=False, dropna=False).agg(**columns).reset_index()


def describe(summary: dict[str, Rows]) -> str:
    """Plain text tables of predictions and theorem, as read from dynamics.json."""
    frames = [pd.DataFrame(summary[part]) for part in ("patterns", "theorem")]
    return "\n\n".join(f.to_string(index=False, float_format="{:.3f}".format) for f in frames)
