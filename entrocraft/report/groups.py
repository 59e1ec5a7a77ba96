"""Runs that differ in the seed only, and the rows of the table of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from entrocraft.report.summary import Summary, describe, movement, verdict

MISSING = "–"
UNSTEERED = "*"
UNSTEERED_NOTE = (
    f"{UNSTEERED} Nothing steered this run; the number is its distance from the schedule "
    "that is drawn for reference."
)


@dataclass(frozen=True)
class Spread:
    """Mean and range of one number over the seeds that have it."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Group:
    """The same experiment with one or several seeds."""

    name: str
    runs: list[Summary]

    def spread(self, value: Callable[[Summary], float | None]) -> Spread | None:
        """Return mean and range of ``value`` over the runs, None when no run has it."""
        found = [x for x in map(value, self.runs) if x is not None]
        if not found:
            return None
        return Spread(sum(found) / len(found), min(found), max(found), len(found))

    @property
    def seeds(self) -> str:
        """The seeds in order, such as "0, 1, 2"; empty when no run names one."""
        return ", ".join(map(str, sorted({s.seed for s in self.runs if s.seed is not None})))


@dataclass(frozen=True)
class Cell:
    """A number as text, with its range over seeds when it is a mean."""

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
    way = movement(start.mean, end.mean) if start and end else ""
    if not any(s.controlled for s in group.runs):
        first = f"Nothing steered entropy{f'; {way}' if way else ', and none was logged'}."
    elif error is None:
        first = f"No probe tells how entropy kept to its target{f'; {way}' if way else ''}."
    else:
        followed = sum(verdict(s) == "followed" for s in group.runs)
        first = (
            f"Entropy followed the target in {followed} of {len(group.runs)} runs: the probe was "
            f"{error.mean:.3f} nats away ({_range(error, '{:.3f}')}){f'; {way}' if way else ''}."
        )
    outcome = []
    reward = group.spread(lambda s: s.final_reward)
    if reward is not None:
        outcome.append(f"reward ended at {reward.mean:.2f}")
    for key in dict.fromkeys(f"pass@{k}" for k in (1, headline_k(group.runs)) if k):
        cell = _pass_cell(group, key)
        if cell.value != MISSING:
            outcome.append(f"{key} {cell.value}")
    if not outcome:
        return first
    second = ", ".join(outcome)
    return f"{first} {second[0].upper()}{second[1:]} (means over {len(group.runs)} seeds)."


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
    ]


def table_rows(summaries: Sequence[Summary], members: bool = False) -> list[Row]:
    """Return one row per group, as mean and range over seeds when it has several.

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
    mark = "" if all(s.controlled for s in group.runs) else f" {UNSTEERED}"
    return [
        _cell(group, lambda s: s.tracking_error, "{:.3f}", mark),
        _cell(group, lambda s: s.final_reward, "{:.2f}"),
        _pass_cell(group, "pass@1"),
        _pass_cell(group, f"pass@{k}"),
        _cell(group, lambda s: s.kept_fraction, "{:.0%}"),
        _cell(group, lambda s: s.saturated_share, "{:.0%}"),
    ]


def _cell(
    group: Group, value: Callable[[Summary], float | None], form: str, mark: str = ""
) -> Cell:
    spread = group.spread(value)
    if spread is None:
        return Cell(MISSING)
    return Cell(_format(form, spread.mean) + mark, _range(spread, form))


def _pass_cell(group: Group, key: str) -> Cell:
    def at(edge: str) -> Spread | None:
        return group.spread(lambda s: getattr(s.pass_at[key], edge) if key in s.pass_at else None)

    first, last = at("first"), at("last")
    if first is None or last is None:
        return Cell(MISSING)
    moved = any(p.first_step < p.last_step for s in group.runs if (p := s.pass_at.get(key)))
    before = f"{first.mean:.2f} → " if moved else ""
    return Cell(f"{before}{last.mean:.2f}", _range(last, "{:.2f}"))


def _range(spread: Spread, form: str) -> str:
    if spread.n == 1:
        return ""
    if _format(form, spread.low) == _format(form, spread.high):
        return f"all {_format(form, spread.low)}"
    return f"{_format(form, spread.low)} to {_format(form, spread.high)}"


def _format(form: str, value: float) -> str:
    return form.format(value).replace("%", " %")
