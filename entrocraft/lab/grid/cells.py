"""A training run of a study in a process of its own, and several of them side by side."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from entrocraft.lab.records import read_records
from entrocraft.lab.training.config import TrainConfig
from entrocraft.lab.training.directory import RunDirectory

_POLL_SECONDS = 0.5


@dataclass
class Cell:
    """One training run and its directory."""

    directory: Path
    config: TrainConfig

    @property
    def title(self) -> str:
        """Name and seed of the run."""
        return f"{self.config.title}, seed {self.config.seed}"

    def finished(self) -> bool:
        """Whether this very run ended and was reported; ValueError if another one is here."""
        remedy = f"delete {self.directory} to train it anew, or choose another output"
        done = RunDirectory(self.directory).finished(self.config, remedy)
        return done and (self.directory / "report.html").exists()

    def start(self, threads: int) -> subprocess.Popen[bytes]:
        """Start the run in a process of its own; what it prints goes to log.txt."""
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / "cell.yaml"
        file.write_text(yaml.safe_dump(self.config.as_dict(), sort_keys=False))
        environment = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)
        )
        environment["TOKENIZERS_PARALLELISM"] = "false"
        command = [sys.executable, "-m", "entrocraft", "train", str(file)]
        with (self.directory / "log.txt").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def run_cells(
    cells: list[Cell], jobs: int, threads: int, console: Console, keep: Callable[[Cell], None]
) -> list[Cell]:
    """Run cells, `jobs` at a time, under a progress display; return those that failed.

    `keep` is called with each cell that ended well, while others still run.
    """
    from entrocraft.lab.training.progress import CellsProgress

    waiting, failed = list(cells), []
    running: dict[str, tuple[Cell, subprocess.Popen[bytes]]] = {}
    shown = CellsProgress([(cell.title, cell.config.steps) for cell in cells], console)
    with shown as progress:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    running[cell.title] = (cell, cell.start(threads))
                time.sleep(_POLL_SECONDS)
                for title, (cell, process) in list(running.items()):
                    progress.show(title, read_records(cell.directory / "metrics.jsonl"))
                    if (code := process.poll()) is not None:
                        del running[title]
                        progress.finish(title, failed=code != 0)
                        failed.append(cell) if code else keep(cell)
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
    return failed
