"""The run directory: whose it is, where it goes on, and that only one process writes it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from entrocraft.lab.parsing import flat_keys
from entrocraft.lab.records import read_records
from entrocraft.lab.training.config import TrainConfig

__all__ = ["RunDirectory"]

_OTHERWISE = "choose another output, or set resume=false to start over"

# settings that do not change what the run computes
_FREE = ("output", "resume", "cache_dir", "name")
_WRITTEN = ("checkpoints", "metrics.jsonl", "report.html", "entropy.png", "summary.json")


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
            ValueError: the directory cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"output is {self.path}, which cannot be made a directory ({error.strerror}); "
                "choose another one"
            ) from error
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

    def check(self, config: TrainConfig, remedy: str = _OTHERWISE) -> None:
        """Refuse to go on in a directory that holds the results of another config.

        More steps than the run was made for are no other config: it goes on to them.

        Args:
            config: of the run that wants to go on.
            remedy: what the error tells to do.

        Raises:
            ValueError: names the first key that differs, or what cannot be read.
        """
        if not (read_records(self.metrics) or self.last_checkpoint()):
            return
        theirs, mine = flat_keys(self._read_config(remedy)), flat_keys(config.as_dict())
        for key in mine | theirs:
            if key.partition(".")[0] in (*_FREE, "command") or theirs.get(key) == mine.get(key):
                continue
            if key == "steps" and isinstance(theirs.get(key), int) and theirs[key] < mine[key]:
                continue
            raise ValueError(
                f"{self.path} holds a run with {key}={theirs.get(key)!r}, now asked for "
                f"{key}={mine.get(key)!r}; {remedy}"
            )

    def _read_config(self, remedy: str) -> dict[str, Any]:
        try:
            keys = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            problem = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{self.path} holds a run whose settings cannot be read ({problem}); {remedy}"
            ) from error
        if not isinstance(keys, dict):
            raise ValueError(f"{self.config} has no keys, so its run is not known; {remedy}")
        return keys

    def claim(self, config: TrainConfig) -> None:
        """Write config.yaml; with `resume=false` move what an earlier run left into previous/."""
        if not config.resume:
            self._set_aside()
        command = " ".join(["entrocraft", *sys.argv[1:]])
        partial = self.path / "config.yaml.partial"
        partial.write_text(yaml.safe_dump(config.as_dict() | {"command": command}, sort_keys=False))
        os.replace(partial, self.config)

    def _set_aside(self) -> None:
        names = [*_WRITTEN, "config.yaml"]
        there = [self.path / name for name in names if (self.path / name).exists()]
        if not there:
            return
        aside = self.path / "previous"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for path in there:
            path.rename(aside / path.name)

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

    def finished(self, config: TrainConfig, remedy: str = _OTHERWISE) -> bool:
        """Whether this very config ran to its end here, with everything that it measures.

        Raises:
            ValueError: the directory holds a run of another config; see `check`.
        """
        self.check(config, remedy)
        records = read_records(self.metrics)
        evaluation = config.evaluation
        last = config.steps if evaluation.probe_every or evaluation.every else config.steps - 1
        return bool(records) and records[-1]["step"] >= last
