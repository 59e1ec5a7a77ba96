"""What a person sees while a run goes: the numbers that matter, and the time left."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["CellsProgress", "RunProgress", "describe_record"]


def describe_record(record: dict[str, Any]) -> str:
    """One line of a record: entropy against target, reward, kept fraction.

    >>> describe_record({"entropy/measured": 0.41, "entropy/target": 0.4, "reward": 0.3})
    'entropy 0.410 (target 0.400)  reward 0.300'
    """
    parts = []
    if "entropy/measured" in record:
        text = f"entropy {record['entropy/measured']:.3f}"
        if "entropy/target" in record:
            text += f" (target {record['entropy/target']:.3f})"
        parts.append(text)
    if "reward" in record:
        parts.append(f"reward {record['reward']:.3f}")
    if "entropy/kept_fraction" in record:
        parts.append(f"kept {record['entropy/kept_fraction']:.0%}")
    if record.get("entropy/saturated"):
        parts.append("saturated")
    return "  ".join(parts)


class _Numbers(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields.get("numbers", ""))


class RunProgress:
    """A progress bar on a terminal; a line every tenth of the run elsewhere."""

    def __init__(self, title: str, steps: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.title = title
        self.steps = steps
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Numbers(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=steps)
        self._printed = -1

    def __enter__(self) -> RunProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, record: dict[str, Any]) -> None:
        """Show one record."""
        done = min(record["step"] + 1, self.steps)
        self._progress.update(self._task, completed=done, numbers=describe_record(record))
        tenth = done * 10 // self.steps
        if not self.console.is_terminal and tenth > self._printed and "reward" in record:
            self._printed = tenth
            self.console.print(f"{self.title} step {done}/{self.steps}  {describe_record(record)}")


class CellsProgress:
    """Bars of several runs at once and one for all of them; lines elsewhere than on a terminal."""

    def __init__(self, cells: list[tuple[str, int]], console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            _Numbers(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._steps = dict(cells)
        self._done: dict[str, int] = {title: 0 for title, _ in cells}
        self._all = self._progress.add_task("[bold]all runs", total=sum(self._steps.values()) or 1)
        self._tasks = {
            title: self._progress.add_task(title, total=steps, visible=False)
            for title, steps in cells
        }
        self._printed = -1

    def __enter__(self) -> CellsProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, title: str, records: list[dict[str, Any]]) -> None:
        """Show how far a run is, from its records."""
        trained = [record for record in records if "reward" in record]
        numbers = describe_record(trained[-1]) if trained else "starting"
        self._advance(title, len(trained), numbers)

    def finish(self, title: str, failed: bool) -> None:
        """Mark a run as ended."""
        done = self._done[title] if failed else self._steps[title]
        self._advance(title, done, "failed, see its log.txt" if failed else "done")
        if not self.console.is_terminal:
            self.console.print(f"{title}: {'failed, see its log.txt' if failed else 'done'}")

    def _advance(self, title: str, done: int, numbers: str) -> None:
        self._done[title] = done
        self._progress.update(self._tasks[title], completed=done, numbers=numbers, visible=True)
        total = sum(self._done.values())
        self._progress.update(self._all, completed=total)
        tenth = total * 10 // (sum(self._steps.values()) or 1)
        if not self.console.is_terminal and tenth > self._printed:
            self._printed = tenth
            self.console.print(f"{tenth * 10:>3} % of all steps  ({title}: {numbers})")
