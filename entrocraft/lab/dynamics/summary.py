"""From the rows of a study to its few numbers, and the table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.table import Table

from entrocraft.lab.dynamics.patterns import PREDICTIONS
from entrocraft.lab.dynamics.statistics import bootstrap, explained, fit_line, sign_agreement

__all__ = ["UNFITTED", "predictions_of", "render_tables", "summarize"]

Rows = list[dict[str, Any]]

UNFITTED = ("gradient", "anchored")
"""Levels that predict the change itself, in nats; the others up to a gain and an offset."""


def predictions_of(rows: Rows, level: str) -> dict[str, np.ndarray]:
    """How a level predicts the realized changes, one array per way.

    `gradient` and `anchored` predict as they are: "unfitted". The others know neither their gain
    nor what momentum brings: a line per stage, fitted to the very points ("fitted"), or to all
    points of the stage but the one that is predicted ("left out").
    """
    x = np.array([row[level] for row in rows], dtype=float)
    if level in UNFITTED:
        return {"unfitted": x}
    y = np.array([row["realized"] for row in rows], dtype=float)
    stages = np.array([row["stage"] for row in rows])
    fitted, left_out = np.empty_like(y), np.empty_like(y)
    for stage in np.unique(stages):
        here = stages == stage
        fitted[here], left_out[here] = fit_line(x[here], y[here])
    return {"fitted": fitted, "left out": left_out}


def summarize(rows: dict[str, Rows]) -> dict[str, Rows]:
    """Summaries of the parts `patterns`, `theorem` and `authority`, each as rows.

    patterns: level, stage (a step or "all"), way, n, r2 and sign (agreement) with `_low` and
    `_high` of their 95 % intervals, and r2_within, about the mean of each stage.
    theorem: stage, advantage, shares; see `theorem`.
    authority: stage, rule, direction, clip, updates; the changes of `probe` and `batch`, whole and
    against plain, mean and standard error over the holds.
    """
    return {
        "patterns": _patterns(rows["patterns"]),
        "theorem": _theorem(rows["theorem"]),
        "authority": _authority(rows["authority"]),
    }


def _stages(rows: Rows) -> list[Any]:
    stages = sorted({row["stage"] for row in rows})
    return [*stages, "all"] if len(stages) > 1 else stages


def _of(rows: Rows, **wanted: Any) -> Rows:
    return [row for row in rows if all(v == "all" or row[key] == v for key, v in wanted.items())]


def _patterns(rows: Rows) -> Rows:
    found = []
    for level in PREDICTIONS:
        for stage in _stages(rows):
            part = _of(rows, stage=stage)
            y = np.array([row["realized"] for row in part], dtype=float)
            stages = np.array([row["stage"] for row in part])
            for way, predicted in predictions_of(part, level).items():
                summary = {"level": level, "stage": stage, "way": way, "n": len(y)}
                summary["r2_within"] = explained(predicted, y, stages)
                for name, measure in (("r2", explained), ("sign", sign_agreement)):
                    low, high = bootstrap(measure, predicted, y)
                    summary |= {
                        name: measure(predicted, y),
                        f"{name}_low": low,
                        f"{name}_high": high,
                    }
                found.append(summary)
    return found


def _theorem(rows: Rows) -> Rows:
    found = []
    for stage in _stages(rows):
        for advantage in ("positive", "negative"):
            part = _of(rows, stage=stage, advantage=advantage)
            total = {
                key: sum(row[key] for row in part)
                for key in part[0]
                if key not in ("stage", "step", "advantage")
            }
            tokens, sequences = max(total["tokens"], 1), max(total["sequences"], 1)
            found.append(
                {
                    "stage": stage,
                    "advantage": advantage,
                    "tokens": total["tokens"],
                    "sequences": total["sequences"],
                    "share_tokens": total["tokens_met"] / tokens,
                    "share_sequences": total["sequences_met"] / sequences,
                    "share_sequences_opposed": total["sequences_opposed"] / sequences,
                    "share_sequences_all_tokens": total["sequences_all_met"] / sequences,
                    "met_and_opposed": total["sequences_met_opposed"]
                    / max(total["sequences_met"], 1),
                    "mean_logprob": total["logprob"] / max(total["tokens_counted"], 1),
                    "mean_baseline": total["baseline"] / max(total["tokens_counted"], 1),
                }
            )
    return found


def _authority(rows: Rows) -> Rows:
    if not rows:
        return []
    keys = ("rule", "level", "direction", "clip", "updates")
    plain = {
        (row["step"], row["clip"], row["updates"]): row for row in rows if row["rule"] == "plain"
    }
    cases = list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))
    found = []
    for stage in _stages(rows):
        for case in cases:
            part = [row for row in _of(rows, stage=stage) if case == tuple(row[k] for k in keys)]
            summary: dict[str, Any] = dict(zip(keys, case, strict=True))
            summary |= {"stage": stage, "n": len(part)}
            summary["kept"] = float(np.mean([row["kept"] for row in part]))
            for name in ("probe", "batch"):
                own = np.array([row[name] for row in part])
                base = [plain[row["step"], row["clip"], row["updates"]][name] for row in part]
                summary |= _spread(name, own) | _spread(f"{name}_against_plain", own - base)
            found.append(summary)
    return found


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return {name: float(values.mean()), f"{name}_stderr": error}


# ---------------------------------------------------------------------- the terminal


def render_tables(summary: dict[str, Rows]) -> Iterable[Table]:
    """Tables of a summary as read from dynamics.json; print them with rich's `Console.print`."""
    table = Table(
        title="Predicted against realized change of entropy (95 % intervals)", title_justify="left"
    )
    for name in ("level", "step", "prediction"):
        table.add_column(name)
    for name in ("n", "R²", "R² in stages", "sign agrees"):
        table.add_column(name, justify="right")
    for row in summary["patterns"]:
        table.add_row(
            row["level"],
            str(row["stage"]),
            row["way"],
            str(row["n"]),
            _with_range(row, "r2", "{:.3f}"),
            "–" if row["r2_within"] is None else f"{row['r2_within']:.3f}",
            _with_range(row, "sign", "{:.1%}"),
        )
    yield table
    table = Table(title="Theorem 1 with the real output-space baseline", title_justify="left")
    for name in ("step", "advantage"):
        table.add_column(name)
    for name in ("tokens", "meet it", "sequences", "Theorem 2", "summed", "every token"):
        table.add_column(name, justify="right")
    for row in summary["theorem"]:
        table.add_row(
            str(row["stage"]),
            row["advantage"],
            f"{row['tokens']:.0f}",
            f"{row['share_tokens']:.1%}",
            f"{row['sequences']:.0f}",
            f"{row['share_sequences']:.1%}",
            f"{row['share_sequences_opposed']:.1%}",
            f"{row['share_sequences_all_tokens']:.1%}",
        )
    yield table
    if summary["authority"]:
        yield _authority_table(summary["authority"])


def _authority_table(rows: Rows) -> Table:
    table = Table(
        title="Change of entropy against plain, nats per token, on fresh samples ± standard error",
        title_justify="left",
    )
    table.add_column("rule")
    last = rows[-1]["stage"]
    rows = [row for row in rows if row["stage"] == last]
    columns = list(dict.fromkeys((row["updates"], row["clip"]) for row in rows))
    columns.sort(key=lambda c: (c[0], c[1] is None, c[1] or 0.0))
    for updates, clip in columns:
        name = "no clip" if clip is None else f"clip {clip:g}"
        table.add_column(f"{updates} updates\n{name}", justify="right")
    names = dict.fromkeys(describe_rule(row) for row in rows if row["rule"] != "plain")
    for name in names:
        cells = []
        for column in columns:
            (row,) = (
                row
                for row in rows
                if describe_rule(row) == name and (row["updates"], row["clip"]) == column
            )
            error = row["probe_against_plain_stderr"]
            around = "" if error is None else f" ± {error:.4f}"
            cells.append(f"{row['probe_against_plain']:+.4f}{around}")
        table.add_row(name, *cells)
    return table


def describe_rule(row: dict[str, Any]) -> str:
    """One name for rule, level and direction."""
    name = row["rule"] if row["rule"] != "tilt" else f"tilt, {row['level']}"
    return name + {1: " up", -1: " down", 0: ""}[row["direction"]]


def _with_range(row: dict[str, Any], key: str, form: str) -> str:
    values = [row[name] for name in (key, f"{key}_low", f"{key}_high")]
    if None in values:
        return "–"
    value, low, high = map(form.format, values)
    return f"{value} ({low}, {high})"
