"""The runs that the page shows, read again when their files have changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from entrocraft import schedules
from entrocraft.lab.records import ROLLOUTS_FILE, RunError, read_rollouts
from entrocraft.lab.report.runs import Run, runs_in
from entrocraft.steering import STEERED_FILE, Steered, read_steered

_DEPTH = 3  # of folders below a directory that holds no run itself
_LOGS = ("metrics.jsonl", "trainer_state.json", "events.out.tfevents.*", "*.db", "*.parquet")
_SIGNS = (*_LOGS, "*.db-wal", "checkpoint-*/trainer_state.json", "runs/*/events.out.tfevents.*")
_NO_RUNS = ("previous", "checkpoints")  # of a run directory of ours


@dataclass(frozen=True)
class Watched:
    """One run of the page.

    Attributes:
        label: unlike that of every other run.
        run: its metrics and settings.
        steered: what the run says of itself; None if it cannot be steered.
    """

    label: str
    run: Run
    steered: Steered | None

    @property
    def live(self) -> bool:
        """Whether the run takes commands, as far as it has said."""
        return self.steered is not None and self.steered.state in ("running", "paused")

    @property
    def last_step(self) -> int:
        """The last step that was logged."""
        return int(self.run.frame.index[-1])

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run, as far as is known."""
        configured = self.run.config.get("steps")
        known = self.steered.steps if self.steered else configured
        return max(known if type(known) is int else 0, self.last_step, 1)

    @property
    def initial(self) -> float | None:
        """Entropy of the first batch, nats per token, to which levels may be relative."""
        if self.steered and self.steered.initial is not None:
            return self.steered.initial
        _, measured = self.run.points("entropy/measured")
        return float(measured[0]) if len(measured) else None

    @property
    def schedule(self) -> str | None:
        """Text of the schedule that the run follows now."""
        if self.steered:
            return self.steered.schedule
        changed = [text for _, text in sorted(self.run.schedules.items())]
        found = changed[-1] if changed else self.run.control.get("schedule")
        return None if found is None else str(found)

    def curve(self, text: str) -> schedules.Schedule:
        """Return a schedule in numbers of this run.

        Raises:
            ValueError: the text is no schedule, or asks for an entropy below 0.
        """
        curve = schedules.from_string(text)
        if self.initial is not None:
            curve = schedules.anchor(curve, max(self.initial, 0.0))
        if (low := min(curve(step) for step in range(self.steps + 1))) < 0:
            raise ValueError(f"{text} asks for {low:.3g} nats per token; entropy is never negative")
        return curve

    def rollouts(self) -> list[dict[str, Any]]:
        """Sample rollouts by step, none if the run records none."""
        file = self.run.path / ROLLOUTS_FILE
        stat = _stat(file)
        return [] if stat is None else _rollouts(file, stat.st_mtime_ns, stat.st_size)


class RunReader:
    """Reads the runs in some directories, each again only when its files have changed.

    Args:
        paths: run directories, or directories above them; they need not exist yet.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._read: dict[Path, tuple[Any, list[Run], str | None]] = {}

    def read(self) -> tuple[list[Watched], list[str]]:
        """Return the runs, and why others cannot be shown."""
        found: list[Run] = []
        problems = []
        for path in dict.fromkeys(p for root in self._paths for p in _run_directories(root)):
            sign = signature(path)
            if self._read.get(path, (None,))[0] != sign:
                self._read[path] = (sign, *_load(path))
            _, runs, problem = self._read[path]
            found += runs
            problems += [problem] if problem else []
        if not (found or problems):
            places = ", ".join(map(str, self._paths))
            problems.append(f"no run in {places} yet; it is shown here as soon as it logs a step")
        return _labeled(found), problems


def signature(path: Path) -> Any:
    """Return what changes when the run's files do."""
    names = (*_SIGNS, "config.yaml", STEERED_FILE, ROLLOUTS_FILE)
    files = [path] if path.is_file() else [f for name in names for f in path.glob(name)]
    return tuple((str(f), s.st_mtime_ns, s.st_size) for f in files if (s := _stat(f)))


@lru_cache(maxsize=8)
def _rollouts(file: Path, modified: int, size: int) -> list[dict[str, Any]]:
    return read_rollouts(file)


def _stat(file: Path) -> Any:
    try:
        return file.stat()
    except OSError:  # replaced meanwhile
        return None


def _run_directories(root: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Yield the directory itself if it holds a run, else those below it that do."""
    if root.is_file() or any(f for name in _SIGNS for f in root.glob(name)):
        yield root
    elif depth and root.is_dir():
        for path in sorted(root.iterdir()):
            if path.is_dir() and path.name not in _NO_RUNS and not path.name.startswith("."):
                yield from _run_directories(path, depth - 1)


def _load(path: Path) -> tuple[list[Run], str | None]:
    try:
        return runs_in(path), None
    except (RunError, OSError) as error:
        return [], str(error)


def _labeled(runs: list[Run]) -> list[Watched]:
    """Give runs of one name their seeds, then their directories, so that no two are alike."""
    by_name = [run.name for run in runs]
    seeded = [
        name if by_name.count(name) == 1 or run.seed is None else f"{name} seed {run.seed}"
        for name, run in zip(by_name, runs, strict=True)
    ]
    labels = [
        name if seeded.count(name) == 1 else f"{name} ({run.path})"
        for name, run in zip(seeded, runs, strict=True)
    ]
    return [
        Watched(label, replace(run), _steered(run.path))
        for label, run in zip(labels, runs, strict=True)
    ]


def _steered(path: Path) -> Steered | None:
    try:
        return read_steered(path)
    except ValueError:
        return None
