"""Progress displays of warm starts, training runs and comparisons."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from typing_extensions import Self


_SHOWN = {
    "entropy/measured": "entropy {:.3f}",
    "entropy/target": "target {:.3f}",
    "reward": "reward {:.3f}",
    "entropy/kept_fraction": "kept {:.0%}",
}


def describe_record(record: dict[str, Any], verbose: bool = False) -> str:
    """One line of a record: entropy, target, reward, kept fraction, and all else if `verbose`.

    >>> describe_record({"entropy/measured": 0.41, "entropy/target": 0.4, "reward": 0.3})
    'entropy 0.410  target 0.400  reward 0.300'
    """
    parts = [text.format(record[key]) for key, text in _SHOWN.items() if key in record]
    if verbose:
        others = record.keys() - _SHOWN.keys() - {"step"}
        numbers = [key for key in sorted(others) if not isinstance(record[key], str)]
        parts += [f"{key} {record[key]:.4g}" for key in numbers]
    elif record.get("entropy/saturated"):
        parts.append("saturated")
    return "  ".join(parts)


class Display:
    """Progress bars on a terminal; elsewhere one line for every tenth of the work."""

    def __init__(self, console: Console, steps: int, transient: bool = False) -> None:
        self.console = console
        self._steps_in_all = max(steps, 1)
        self._progress = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=20),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[numbers]}", markup=False),
            bars.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=transient,
        )
        self._tenth = -1

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def _every_tenth(self, done: int, text: str) -> None:
        """Print a line for every tenth of the work, where no bar is shown."""
        tenth = done * 10 // self._steps_in_all
        if not self.console.is_terminal and tenth > self._tenth:
            self._tenth = tenth
            self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


class WarmStartProgress(Display):
    """Progress of a warm start; nothing is left of it on a terminal."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        super().__init__(console or Console(), steps, transient=True)
        self._task: bars.TaskID | None = None

    def __call__(self, stage: str, done: int, total: int, loss: float | None) -> None:
        """Show how far a stage is, and the loss in nats per token."""
        if self._task is None:  # a warm start from the cache shows nothing
            self._task = self._progress.add_task("warm start", total=total, numbers="")
        title, numbers = f"warm start: {stage}", "" if loss is None else f"loss {loss:.3f}"
        self._progress.update(
            self._task, description=title, completed=done, total=total, numbers=numbers
        )
        if stage == "training":
            self._every_tenth(done, f"{title} {done}/{total}  {numbers}".rstrip())


class RunProgress(Display):
    """Progress of one run; with `verbose` a line for every record, with all that is in it."""

    def __init__(
        self, title: str, steps: int, console: Console | None = None, verbose: bool = False
    ) -> None:
        super().__init__(console or Console(), steps)
        self.title = title
        self.steps = steps
        self.verbose = verbose
        self._task = self._progress.add_task(f"[bold]{escape(title)}", total=steps, numbers="")

    def __call__(self, record: dict[str, Any]) -> None:
        """Show one record."""
        done = min(record["step"] + 1, self.steps)
        numbers = describe_record(record, self.verbose)
        text = f"{self.title} step {done}/{self.steps}  {numbers}"
        if self.verbose:
            self._print(text)
        if "reward" not in record:
            return
        self._progress.update(self._task, completed=done, numbers=describe_record(record))
        if not self.verbose:
            self._every_tenth(done, text)


class CellsProgress(Display):
    """Progress of several runs at once, and of all of them together."""

    def __init__(self, cells: list[tuple[str, int]], console: Console) -> None:
        super().__init__(console, sum(steps for _, steps in cells))
        self._steps = dict(cells)
        self._start = time.monotonic()
        self._done = {title: 0 for title, _ in cells}
        self._all = self._progress.add_task("[bold]all runs", total=self._steps_in_all, numbers="")
        self._tasks = {
            title: self._progress.add_task(escape(title), total=steps, visible=False, numbers="")
            for title, steps in cells
        }

    def show(self, title: str, records: list[dict[str, Any]]) -> None:
        """Show how far a run is, from its records."""
        trained = [record for record in records if "reward" in record]
        numbers = describe_record(trained[-1]) if trained else "starting"
        self._advance(title, trained[-1]["step"] + 1 if trained else 0, numbers)

    def finish(self, title: str, failed: bool) -> None:
        """Mark a run as ended."""
        state = "failed, see its log.txt" if failed else "done"
        self._advance(title, self._done[title] if failed else self._steps[title], state)
        if not self.console.is_terminal:
            self._print(f"{title}: {state}")

    def _advance(self, title: str, done: int, numbers: str) -> None:
        self._done[title] = done
        self._progress.update(self._tasks[title], completed=done, numbers=numbers, visible=True)
        total = sum(self._done.values())
        self._progress.update(self._all, completed=total)
        share = total / self._steps_in_all
        left = _time_left(time.monotonic() - self._start, share)
        self._every_tenth(total, f"{share:4.0%} of all steps{left}  ({title}: {numbers})")


def _time_left(elapsed: float, share: float) -> str:
    """Remaining time at the mean speed so far, as text; empty at the start and at the end."""
    if not 0 < share < 1:
        return ""
    minutes = elapsed * (1 - share) / share / 60
    return f", {minutes:.0f} min left" if minutes < 90 else f", {minutes / 60:.1f} h left"
