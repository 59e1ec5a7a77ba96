"""The run directory: whose it is, where it goes on, and that only one process writes it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from entrocraft.training.config import TrainConfig
from entrocraft.training.recorder import read_records

__all__ = ["RunDirectory"]

# settings that do not change what the run computes
_FREE = ("output", "resume", "cache_dir")


class RunDirectory:
    """config.yaml, metrics.jsonl, checkpoints/ and the report of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; the lock ends with the process, however that ends.

        Raises:
            RuntimeError: another process is writing the directory.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(
                f"another process is training in {self.path}; wait for it, stop it, or choose "
                "another output"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def check(self, config: TrainConfig) -> None:
        """Refuse to go on in a directory that holds the results of another config.

        Raises:
            ValueError: names the first key that differs.
        """
        if not self.config.exists() or not (read_records(self.metrics) or self.last_checkpoint()):
            return
        theirs, mine = yaml.safe_load(self.config.read_text()) or {}, config.as_dict()
        for key in mine:
            if key not in _FREE and theirs.get(key) != mine[key]:
                raise ValueError(
                    f"{self.path} holds a run with {key}={theirs.get(key)!r}, now asked for "
                    f"{key}={mine[key]!r}; choose another output, or set resume=false to start over"
                )

    def claim(self, config: TrainConfig) -> None:
        """Write config.yaml; with `resume=false` remove what an earlier run left."""
        if not config.resume:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            for name in ("metrics.jsonl", "report.html", "entropy.png", "summary.json"):
                (self.path / name).unlink(missing_ok=True)
        command = " ".join(["entrocraft", *sys.argv[1:]])
        partial = self.path / "config.yaml.partial"
        partial.write_text(yaml.safe_dump(config.as_dict() | {"command": command}, sort_keys=False))
        os.replace(partial, self.config)

    def last_checkpoint(self, below: int | None = None) -> str | None:
        """Last checkpoint that was written to its end, at a step below `below` if given."""
        found = {}
        for path in self.checkpoints.glob("checkpoint-*"):
            number = path.name.rpartition("-")[2]
            # the trainer writes its state last
            if number.isdigit() and (path / "trainer_state.json").exists():
                found[int(number)] = path
        steps = [step for step in found if below is None or step < below]
        return str(found[max(steps)]) if steps else None

    def finished(self, config: TrainConfig) -> bool:
        """Whether this very config ran to its end here, with everything that it measures.

        Raises:
            ValueError: the directory holds a run of another config.
        """
        self.check(config)
        records = read_records(self.metrics)
        evaluation = config.evaluation
        last = config.steps if evaluation.probe_every or evaluation.every else config.steps - 1
        return bool(records) and records[-1]["step"] >= last
