"""A cell of a comparison: one training run in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from entrocraft.lab.records import read_records
from entrocraft.lab.training.config import TrainConfig
from entrocraft.lab.training.directory import RunDirectory

__all__ = ["Cell", "run_cells"]

_POLL_SECONDS = 0.5


@dataclass
class Cell:
    """One training run of a comparison."""

    directory: Path
    config: TrainConfig

    @property
    def title(self) -> str:
        """Method and seed."""
        return f"{self.config.title}, seed {self.config.seed}"

    def records(self) -> list[dict[str, Any]]:
        """What the run has recorded so far."""
        return read_records(self.directory / "metrics.jsonl")

    def finished(self) -> bool:
        """Whether this very run reached its end and was reported.

        Raises:
            ValueError: the directory holds a run of another config.
        """
        remedy = f"delete {self.directory} to train it anew, or choose another output"
        done = RunDirectory(self.directory).finished(self.config, remedy)
        return done and (self.directory / "report.html").exists()

    def start(self, threads: int) -> subprocess.Popen[bytes]:
        """Start the run in a process of its own; what it prints goes to log.txt."""
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / "cell.yaml"
        file.write_text(yaml.safe_dump(self.config.as_dict(), sort_keys=False))
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        with (self.directory / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "entrocraft", "train", str(file)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )


def run_cells(
    cells: list[Cell], jobs: int, threads: int, console: Console, poll: float = _POLL_SECONDS
) -> list[Cell]:
    """Run cells, `jobs` at a time, under a progress display; return those that failed."""
    from entrocraft.lab.training.progress import CellsProgress

    waiting, failed = list(cells), []
    running: dict[str, tuple[Cell, subprocess.Popen[bytes]]] = {}
    shown = CellsProgress([(cell.title, cell.config.steps) for cell in cells], console)
    with _stopped_by_a_signal(), shown as progress:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    running[cell.title] = (cell, cell.start(threads))
                time.sleep(poll)
                for title, (cell, process) in list(running.items()):
                    records = cell.records()
                    progress.show(title, records)
                    if (code := process.poll()) is not None:
                        del running[title]
                        progress.finish(title, failed=code != 0)
                        if code != 0:
                            failed.append(cell)
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
    return failed


@contextmanager
def _stopped_by_a_signal() -> Iterator[None]:
    """Let SIGTERM, which batch systems send, stop the runs too, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
