"""The numbers of several runs side by side: one row per method, over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from entrocraft.lab.report.runs import grouped
from entrocraft.lab.report.summary import Summary
from entrocraft.lab.statistics import NOTE, Interval, interval

_ENDS = ("entropy_start", "entropy_end")
_ERRORS = ("tracking_error", "tracking_error_measured")
_NUMBERS = (*_ERRORS, "final_reward", "kept_fraction", "saturated_share", "seconds", *_ENDS)
_NOT_STEERED = "* not steered: distance from a schedule that is drawn for reference only"


def group_table(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Return the numbers of every method as data, ready for JSON: one mapping per group.

    Keys: ``group``, ``seeds`` (those that are named), ``runs`` (how many), ``steered``; and, as a
    mapping of an `entrocraft.lab.statistics.Interval` or None, the numbers of a `Summary`
    (``entropy_start`` to ``seconds``), ``pass@k`` of the last and ``pass@k_start`` of the first
    evaluation.
    """
    rows, keys = [], dict.fromkeys(key for s in summaries for key in s.pass_at)
    for name, runs in grouped(summaries).items():
        numbers = {key: interval(getattr(s, key) for s in runs) for key in _NUMBERS}
        for key in keys:
            at = [s.pass_at[key] for s in runs if key in s.pass_at]
            numbers |= {key: interval(x.last for x in at)}
            numbers |= {f"{key}_start": interval(x.first for x in at)}
        seeds = sorted({s.seed for s in runs if s.seed is not None})
        row: dict[str, Any] = {"group": name, "seeds": seeds, "runs": len(runs)}
        row["steered"] = all(s.controlled for s in runs)
        rows.append(row | {key: number and asdict(number) for key, number in numbers.items()})
    return rows


def render_table(summaries: Sequence[Summary]) -> Table:
    """Return the table for a terminal; print it with ``rich.console.Console().print(table)``."""
    header, rows, notes = text_table(summaries)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    for i, title in enumerate(header):
        table.add_column(title, justify="right" if i else "left", overflow="fold")
    for row in rows:
        # square brackets in a name are not rich markup
        table.add_row(*(Text("\n".join(filter(None, cell))) for cell in row))
    return table


def text_table(summaries: Sequence[Summary]) -> tuple[list[str], list[Any], list[str]]:
    """Return (header, rows, notes) of the table; a cell is a number and what belongs below it.

    Columns without a number in any row are left out.
    """
    rows = group_table(summaries)
    ks = sorted({int(key[5:]) for s in summaries for key in s.pass_at})
    columns = {
        "entropy (nats)": ("entropy_end", ".2f", "entropy_start"),
        "tracking error": ("tracking_error", ".3f", ""),
        "error, batches": ("tracking_error_measured", ".3f", ""),
        "final reward": ("final_reward", ".2f", ""),
        **{f"pass@{k}": (f"pass@{k}", ".2f", f"pass@{k}_start") for k in [*ks[:1], *ks[-1:]]},
        "kept": ("kept_fraction", ".0%", ""),
        "at limit": ("saturated_share", ".0%", ""),
    }
    columns = {title: at for title, at in columns.items() if any(row[at[0]] for row in rows)}
    if "tracking error" in columns:  # the probe has less noise
        columns.pop("error, batches", None)
    notes = [NOTE] if any(row["runs"] > 1 for row in rows) else []
    if any((row[_ERRORS[0]] or row[_ERRORS[1]]) and not row["steered"] for row in rows):
        notes.append(_NOT_STEERED)
    cells = []
    for row in rows:
        name = (row["group"], f"{row['runs']} seeds" if row["runs"] > 1 else "")
        time = str(timedelta(seconds=round(row["seconds"]["center"]))) if row["seconds"] else "–"
        cells.append([name, *(_cell(row, *at) for at in columns.values()), (time, "")])
    return ["run", *columns, "time"], cells, notes


def _cell(row: dict[str, Any], key: str, spec: str, start: str) -> tuple[str, str]:
    if row[key] is None:
        return "–", ""
    number, _, spread = format(Interval(**row[key]), spec).partition(" ")
    if start and row[start]:
        number = f"{row[start]['center']:{spec}} → {number}"
    return number + (" *" if key in _ERRORS and not row["steered"] else ""), spread
