"""From the rows of a study to its few numbers, and the tables on the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from entrocraft.lab.dynamics.patterns import LEVELS

__all__ = [
    "UNFITTED",
    "describe",
    "explained",
    "fit_line",
    "predictions_of",
    "read_results",
    "sign_agreement",
    "summarize",
]

Rows = list[dict[str, Any]]

UNFITTED = ("gradient", "anchored")
"""Levels that predict the change itself, in nats; the others up to a gain and an offset."""

_RESAMPLES = 2000
_OLD_NAMES = {
    "authority": "reach",
    "drift": "pending",
    "realised": "post_update",
    "realized": "post_update",
}


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a dynamics.json; names of earlier versions are replaced by today's."""

    def renamed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {_OLD_NAMES.get(key, key): value for key, value in pairs}

    return json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=renamed)


# ---------------------------------------------------------------------- statistics


def explained(
    predicted: np.ndarray, y: np.ndarray, mean: np.ndarray | None = None, axis: int = -1
) -> Any:
    """R2 = 1 - sum (y - prediction)^2 / sum (y - mean)^2; NaN if y does not vary about its mean.

    >>> float(explained(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0])))
    0.5
    """
    mean = y.mean(axis, keepdims=True) if mean is None else mean
    spread = ((y - mean) ** 2).sum(axis)
    return 1.0 - ((y - predicted) ** 2).sum(axis) / np.where(spread > 0, spread, np.nan)


def sign_agreement(predicted: np.ndarray, y: np.ndarray, axis: int = -1) -> Any:
    """Share of changes whose direction was predicted.

    >>> float(sign_agreement(np.array([0.1, -0.2]), np.array([0.3, 0.1])))
    0.5
    """
    return np.mean(np.sign(predicted) == np.sign(y), axis=axis)


def fit_line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least squares y = a + b x, (2, n): fitted values; each value from the line of the others."""
    columns = np.column_stack([np.ones_like(x), x])
    if np.ptp(x) == 0:
        columns = columns[:, :1]
    q, _ = np.linalg.qr(columns)
    fitted = q @ (q.T @ y)
    # leaving one out in closed form (Allen's PRESS)
    left = 1.0 - (q**2).sum(1)
    error = np.divide(y - fitted, left, out=np.full_like(y, np.nan), where=left > 1e-12)
    return np.stack([fitted, y - error])


def predictions_of(frame: pd.DataFrame, level: str) -> dict[str, np.ndarray]:
    """How a level predicts the post-update changes, one array per way.

    `gradient` and `anchored` predict as they are: "unfitted". The others know neither their gain
    nor what momentum brings: a line per stage, fitted to the very points ("fitted"), or to all
    points of the stage but the one that is predicted ("left out").
    """
    x, y = frame[level].to_numpy(float), frame["post_update"].to_numpy(float)
    if level in UNFITTED:
        return {"unfitted": x}
    lines = np.empty((2, len(frame)))
    for here in frame.groupby("stage").indices.values():
        lines[:, here] = fit_line(x[here], y[here])
    return {"fitted": lines[0], "left out": lines[1]}


# ------------------------------------------------------------------------ summary


def summarize(rows: dict[str, Rows]) -> dict[str, Rows]:
    """Summaries of the parts `patterns`, `theorem` and `reach`, each as rows.

    patterns: level, stage (a step or "all"), way, n, r2 and sign (agreement) with `_low` and
    `_high` of their 95 % intervals (percentile bootstrap over patterns), and r2_within, about the
    mean of each stage.
    theorem: stage, advantage, counts and shares; see `theorem.check_theorem`.
    reach: stage, rule, level, direction, clip, updates; the changes of `probe` and `batch`, whole
    and against plain, mean and standard error over the holds.
    """
    parts = {"patterns": _patterns, "theorem": _theorem, "reach": _reach}
    return {
        name: [
            {"stage": stage, **row}
            for stage, frame in _by_stage(rows[name])
            for row in compute(frame).to_dict("records")
        ]
        for name, compute in parts.items()
    }


def _by_stage(rows: Rows) -> list[tuple[int | str, pd.DataFrame]]:
    if not rows:
        return []
    frame = pd.DataFrame(rows)
    stages: list[tuple[int | str, pd.DataFrame]] = [
        (int(stage), part) for stage, part in frame.groupby("stage")
    ]
    return [*stages, ("all", frame)] if len(stages) > 1 else stages


def _patterns(frame: pd.DataFrame) -> pd.DataFrame:
    y = frame["post_update"].to_numpy(float)
    means = frame.groupby("stage")["post_update"].transform("mean").to_numpy(float)
    found = []
    for level in LEVELS:
        for way, predicted in predictions_of(frame, level).items():
            row: dict[str, Any] = {"level": level, "way": way, "n": len(y)}
            row["r2_within"] = float(explained(predicted, y, means))
            measures: dict[str, Callable[..., Any]] = {"r2": explained, "sign": sign_agreement}
            for name, measure in measures.items():
                interval = bootstrap(
                    (predicted, y),
                    lambda a, b, axis=-1, measure=measure: measure(a, b, axis=axis),
                    paired=True,
                    vectorized=True,
                    n_resamples=_RESAMPLES,
                    method="percentile",
                    rng=np.random.default_rng(0),
                ).confidence_interval
                row |= {
                    name: float(measure(predicted, y)),
                    f"{name}_low": float(interval.low),
                    f"{name}_high": float(interval.high),
                }
            found.append(row)
    return pd.DataFrame(found)


def _theorem(frame: pd.DataFrame) -> pd.DataFrame:
    total = frame.drop(columns=["stage", "step"]).groupby("advantage", sort=False).sum()
    sequences = total["sequences"].clip(lower=1)
    shares = {
        "share_tokens": total["tokens_met"] / total["tokens"].clip(lower=1),
        "share_sequences": total["sequences_met"] / sequences,
        "share_sequences_opposed": total["sequences_opposed"] / sequences,
        "share_sequences_all_tokens": total["sequences_all_met"] / sequences,
        "met_and_opposed": total["sequences_met_opposed"] / total["sequences_met"].clip(lower=1),
    }
    return total[["tokens", "sequences"]].assign(**shares).reset_index()


def _reach(frame: pd.DataFrame) -> pd.DataFrame:
    same = ["step", "clip", "updates"]
    plain = frame.loc[frame["rule"] == "plain", [*same, "probe", "batch"]]
    frame = frame.merge(plain, how="left", on=same, suffixes=("", "_plain"))
    columns: dict[str, Any] = {"n": ("kept", "size"), "kept": ("kept", "mean")}
    for name in ("probe", "batch"):
        frame[f"{name}_against_plain"] = frame[name] - frame[f"{name}_plain"]
        for column in (name, f"{name}_against_plain"):
            columns |= {column: (column, "mean"), f"{column}_stderr": (column, "sem")}
    keys = ["rule", "level", "direction", "clip", "updates"]
    return frame.groupby(keys, sort=False, dropna=False).agg(**columns).reset_index()


# ---------------------------------------------------------------------- the terminal


def describe(summary: dict[str, Rows]) -> str:
    """Plain text tables of a summary as read from dynamics.json."""
    patterns = pd.DataFrame(summary["patterns"])
    shown = patterns[["level", "stage", "way", "n"]].assign(
        **{
            "R2": _with_range(patterns, "r2", "{:.3f}"),
            "R2 in stages": patterns["r2_within"].map("{:.3f}".format),
            "sign agrees": _with_range(patterns, "sign", "{:.1%}"),
        }
    )
    texts = ["Predicted against post-update change of entropy (95 % intervals)", _text(shown)]
    shown = pd.DataFrame(summary["theorem"])
    for column in shown.columns[shown.columns.str.startswith("share_")]:
        shown[column] = shown[column].map("{:.1%}".format)
    shown = shown.drop(columns="met_and_opposed").rename(columns=_SHORT)
    texts += ["Theorem 1 with the real output-space baseline", _text(shown)]
    if summary["reach"]:
        reach = pd.DataFrame(summary["reach"])
        reach = reach[(reach["stage"] == reach["stage"].iloc[-1]) & (reach["rule"] != "plain")]
        change, error = reach["probe_against_plain"], reach["probe_against_plain_stderr"]
        shown = reach[["rule", "level", "direction", "clip", "updates"]].assign(
            change=change.map("{:+.4f}".format), stderr=error.astype(float).map("{:.4f}".format)
        )
        texts += ["Entropy of fresh samples against the plain update, last stage", _text(shown)]
    return "\n\n".join(texts)


_SHORT = {
    "share_tokens": "tokens meet it",
    "share_sequences": "Theorem 2",
    "share_sequences_opposed": "summed change",
    "share_sequences_all_tokens": "every token",
}


def _with_range(frame: pd.DataFrame, key: str, form: str) -> pd.Series:
    value, low, high = (frame[key + end].map(form.format) for end in ("", "_low", "_high"))
    return value + " (" + low + ", " + high + ")"


def _text(frame: pd.DataFrame) -> str:
    return frame.to_string(index=False, na_rep="none", justify="right")
