"""Runs that differ in the seed only, and the rows of the table of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from entrocraft.lab.report.intervals import ENOUGH, INTERVAL_NOTE, Spread, mean_and_range, spread_of
from entrocraft.lab.report.summary import Summary, describe, movement, verdict

MISSING = "–"
UNSTEERED = "*"
UNSTEERED_NOTE = (
    f"{UNSTEERED} Nothing steered this run; the number is its distance from the schedule "
    "that is drawn for reference."
)


@dataclass(frozen=True)
class Group:
    """The same experiment with one or several seeds."""

    name: str
    runs: list[Summary]

    def spread(self, value: Callable[[Summary], float | None]) -> Spread | None:
        """Return center and interval of ``value`` over the runs, None when no run has it."""
        return spread_of(map(value, self.runs))

    @property
    def steered(self) -> bool:
        """Whether entropy was steered in every run."""
        return all(s.controlled for s in self.runs)

    @property
    def seconds(self) -> Spread | None:
        """Mean and range of the wall time of a run (seconds), None when no run logged it."""
        return mean_and_range(s.seconds for s in self.runs)

    @property
    def seeds(self) -> str:
        """The seeds in order, such as "0, 1, 2"; empty when no run names one."""
        return ", ".join(map(str, sorted({s.seed for s in self.runs if s.seed is not None})))


@dataclass(frozen=True)
class Cell:
    """A number as text, with its range or interval when it stands for several seeds."""

    value: str
    range: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table: a run, or a group of seeds when ``runs`` is above one."""

    name: str
    group: str
    seeds: str
    runs: int
    member: bool
    cells: list[Cell]


def group_summaries(summaries: Sequence[Summary]) -> list[Group]:
    """Return the groups in the order in which they first appear."""
    groups: dict[str, list[Summary]] = {}
    for summary in summaries:
        groups.setdefault(summary.group, []).append(summary)
    return [Group(name, runs) for name, runs in groups.items()]


def describe_group(group: Group) -> str:
    """Return what happened in the runs of a group, in one or two sentences for a person."""
    if len(group.runs) == 1:
        return describe(group.runs[0])
    start, end = group.spread(lambda s: s.entropy_start), group.spread(lambda s: s.entropy_end)
    error = group.spread(lambda s: s.tracking_error)
    way = movement(start.center, end.center) if start and end else ""
    if not any(s.controlled for s in group.runs):
        first = f"Nothing steered entropy{f'; {way}' if way else ', and none was logged'}."
    elif error is None:
        first = f"No probe tells how entropy kept to its target{f'; {way}' if way else ''}."
    else:
        followed = sum(verdict(s) == "followed" for s in group.runs)
        first = (
            f"Entropy followed the target in {followed} of {len(group.runs)} runs: the probe was "
            f"{error.center:.3f} nats away ({_spread_in_words(error, '{:.3f}')})"
            f"{f'; {way}' if way else ''}."
        )
    outcome = []
    reward = group.spread(lambda s: s.final_reward)
    if reward is not None:
        outcome.append(f"reward ended at {reward.center:.2f}")
    for key in dict.fromkeys(f"pass@{k}" for k in (1, headline_k(group.runs)) if k):
        cell = _pass_cell(group, key)
        if cell.value != MISSING:
            outcome.append(f"{key} {cell.value}")
    if not outcome:
        return first
    second = ", ".join(outcome)
    means = "interquartile means" if len(group.runs) >= ENOUGH else "means"
    return f"{first} {second[0].upper()}{second[1:]} ({means} over {len(group.runs)} seeds)."


def group_table(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """Return the numbers of the table as data, one mapping per group, ready for JSON.

    Keys: ``group``, ``seeds`` (those that are named), ``runs`` (how many), ``steered``, and one
    mapping ``center``, ``low``, ``high``, ``n`` (see :class:`Spread`), or None where nothing was
    logged, for ``tracking_error`` (nats per token), ``final_reward``, the last value of every
    pass@k under its name, ``kept_fraction`` and ``saturated_share`` (0 to 1), ``entropy_start`` and
    ``entropy_end`` (nats per token). ``seconds`` (wall time of a run) is always mean and range.
    """
    keys = dict.fromkeys(key for s in summaries for key in s.pass_at)
    table = []
    for group in group_summaries(summaries):
        row: dict[str, Any] = {
            "group": group.name,
            "seeds": sorted({s.seed for s in group.runs if s.seed is not None}),
            "runs": len(group.runs),
            "steered": group.steered,
            "tracking_error": group.spread(lambda s: s.tracking_error),
            "final_reward": group.spread(lambda s: s.final_reward),
            **{key: pass_spread(group, key) for key in keys},
            "kept_fraction": group.spread(lambda s: s.kept_fraction),
            "saturated_share": group.spread(lambda s: s.saturated_share),
            "entropy_start": group.spread(lambda s: s.entropy_start),
            "entropy_end": group.spread(lambda s: s.entropy_end),
            "seconds": group.seconds,
        }
        table.append({k: asdict(v) if isinstance(v, Spread) else v for k, v in row.items()})
    return table


def pass_spread(group: Group, key: str, edge: str = "last") -> Spread | None:
    """Return center and interval of ``key``, such as "pass@1", at the "first" or "last" one."""
    return group.spread(lambda s: getattr(s.pass_at[key], edge) if key in s.pass_at else None)


def table_notes(rows: Sequence[Row]) -> list[str]:
    """Return the sentences that a reader of these rows of the table needs below it."""
    notes = [INTERVAL_NOTE] if any(row.runs >= ENOUGH for row in rows) else []
    if any(cell.value.endswith(UNSTEERED) for row in rows for cell in row.cells):
        notes.append(UNSTEERED_NOTE)
    return notes


def duration(seconds: float) -> str:
    """Write a time in its two largest units, such as "2 min 5 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def headline_k(summaries: Sequence[Summary]) -> int | None:
    """Return the k to show beside pass@1: the largest that all evaluated runs share."""
    per_run = [{int(key[5:]) for key in s.pass_at} - {1} for s in summaries if s.pass_at]
    shared = set.intersection(*per_run) if per_run else set()
    return max(shared or set().union(*per_run), default=None)


def table_header(summaries: Sequence[Summary]) -> list[str]:
    """Return the column titles that go with :func:`table_rows`, the name's column left out."""
    k = headline_k(summaries)
    return [
        "tracking error (nats)",
        "final reward",
        "pass@1",
        f"pass@{k}" if k else "pass@k",
        "kept",
        "saturated",
        "time",
    ]


def table_rows(summaries: Sequence[Summary], members: bool = False) -> list[Row]:
    """Return one row per group, with :class:`Spread` over seeds when it has several.

    Args:
        summaries: the runs.
        members: list the single runs of such a group below it as well.
    """
    k = headline_k(summaries)
    rows = []
    for group in group_summaries(summaries):
        several = len(group.runs) > 1
        name = group.name if several else group.runs[0].name
        rows.append(Row(name, group.name, group.seeds, len(group.runs), False, _cells(group, k)))
        if several and members:
            for run in group.runs:
                alone = Group(run.name, [run])
                label = run.name if run.seed is None else f"seed {run.seed}"
                rows.append(Row(label, group.name, alone.seeds, 1, True, _cells(alone, k)))
    return rows


def _cells(group: Group, k: int | None) -> list[Cell]:
    mark = "" if group.steered else f" {UNSTEERED}"
    return [
        _cell(group, lambda s: s.tracking_error, "{:.3f}", mark),
        _cell(group, lambda s: s.final_reward, "{:.2f}"),
        _pass_cell(group, "pass@1"),
        _pass_cell(group, f"pass@{k}"),
        _cell(group, lambda s: s.kept_fraction, "{:.0%}"),
        _cell(group, lambda s: s.saturated_share, "{:.0%}"),
        Cell(duration(group.seconds.center) if group.seconds else MISSING),
    ]


def _cell(
    group: Group, value: Callable[[Summary], float | None], form: str, mark: str = ""
) -> Cell:
    spread = group.spread(value)
    if spread is None:
        return Cell(MISSING)
    return Cell(_format(form, spread.center) + mark, _spread(spread, form))


def _pass_cell(group: Group, key: str) -> Cell:
    first, last = pass_spread(group, key, "first"), pass_spread(group, key)
    if first is None or last is None:
        return Cell(MISSING)
    moved = any(p.first_step < p.last_step for s in group.runs if (p := s.pass_at.get(key)))
    before = f"{first.center:.2f} → " if moved else ""
    return Cell(f"{before}{last.center:.2f}", _spread(last, "{:.2f}"))


def _spread(spread: Spread, form: str) -> str:
    """Write an interval in brackets, a range in words, and nothing for a single value."""
    if not spread.has_interval or spread.low == spread.high:
        return _range(spread, form)
    low, high = _format(form, spread.low), _format(form, spread.high)
    if low.endswith(" %"):
        return f"[{low[:-2]}, {high[:-2]}] %"
    return f"[{low}, {high}]"


def _spread_in_words(spread: Spread, form: str) -> str:
    text = _spread(spread, form)
    return f"95 % interval {text}" if text.startswith("[") else text


def _range(spread: Spread, form: str) -> str:
    if spread.n == 1:
        return ""
    if _format(form, spread.low) == _format(form, spread.high):
        return f"all {_format(form, spread.low)}"
    return f"{_format(form, spread.low)} to {_format(form, spread.high)}"


def _format(form: str, value: float) -> str:
    return form.format(value).replace("%", " %")
