"""Run directory: its config, checkpoints and lock."""

from __future__ import annotations

import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from entrocraft import schedules
from entrocraft.lab.parsing import flat_keys, read_yaml
from entrocraft.lab.records import ROLLOUTS_FILE, read_records
from entrocraft.lab.training.config import TrainConfig
from entrocraft.storage import write_atomically

_OTHERWISE = "choose another output, or set resume=false to start over"

# keys that do not change what the run computes
_FREE = ("output", "resume", "cache_dir", "name", "command", "save_every", "micro_batch")
_WRITTEN = (
    "checkpoints",
    "config.yaml",
    "metrics.jsonl",
    "report.html",
    "entropy.png",
    "summary.json",
    "rollouts.jsonl",
    "steer.json",
    "steered.json",
)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Make a directory and keep other processes out to the end of the block or of the process.

    Raises:
        RuntimeError: another process `busy` ("is training in") this directory.
        ValueError: the directory cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = FileLock(path / ".lock").acquire(timeout=0)
    except Timeout:
        remedy = "wait for it, stop it, or choose another directory with --output"
        raise RuntimeError(f"another process {busy} {path}; {remedy}") from None
    except OSError as error:
        problem = f"which cannot be made a directory ({error.strerror})"
        raise ValueError(f"output is {path}, {problem}; choose another one") from error
    with held:
        yield


def _spelled(keys: dict[str, Any], key: str) -> Any:
    """A value as it is compared: a schedule in its one spelling."""
    value = keys.get(key)
    if key == "control.schedule" and isinstance(value, (str, int, float)):
        try:
            return repr(schedules.from_string(str(value)))
        except ValueError:
            return value
    return value


class RunDirectory:
    """config.yaml, metrics.jsonl, rollouts.jsonl, checkpoints/ and the report of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.rollouts = path / ROLLOUTS_FILE
        self.checkpoints = path / "checkpoints"

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes out; see `locked`."""
        return locked(self.path, "is training in")

    def check(self, config: TrainConfig, remedy: str = _OTHERWISE) -> None:
        """Refuse a directory that holds the results of another config; more steps are no other.

        Raises:
            ValueError: names the first key that differs, or what cannot be read, and the remedy.
        """
        if not (read_records(self.metrics) or self.last_checkpoint()):
            return
        theirs, mine = flat_keys(self._read_config(remedy)), flat_keys(config.as_dict())
        for key in mine | theirs:
            if key.partition(".")[0] in _FREE or _spelled(theirs, key) == _spelled(mine, key):
                continue
            if key == "steps" and isinstance(theirs.get(key), int) and theirs[key] < mine[key]:
                continue
            asked = f"now asked for {key}={mine.get(key)!r}; {remedy}"
            raise ValueError(f"{self.path} holds a run with {key}={theirs.get(key)!r}, {asked}")

    def _read_config(self, remedy: str) -> dict[str, Any]:
        try:
            if not (keys := read_yaml(self.config)):
                raise ValueError("it has no keys")
            return keys
        except (OSError, ValueError) as error:
            problem = f"settings cannot be read ({' '.join(str(error).split())[:200]}); {remedy}"
            raise ValueError(f"{self.path} holds a run whose {problem}") from error

    def claim(self, config: TrainConfig) -> None:
        """Write config.yaml; with `resume=false` move what an earlier run left into previous/."""
        there = [self.path / name for name in _WRITTEN if (self.path / name).exists()]
        if there and not config.resume:
            aside = self.path / "previous"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for path in there:
                path.rename(aside / path.name)
        keys = config.as_dict() | {"command": shlex.join(["entrocraft", *sys.argv[1:]])}
        write_atomically(self.config, yaml.safe_dump(keys, sort_keys=False))

    def last_checkpoint(self, below: int | None = None) -> str | None:
        """Last checkpoint that is whole, at a step below `below` if given; warns of others."""
        from entrocraft.lab.training.checkpoints import by_step, problem_of

        for step, checkpoint in reversed(by_step(self.checkpoints).items()):
            if below is not None and step >= below:
                continue
            if (problem := problem_of(checkpoint)) is None:
                return str(checkpoint)
            text = f"{checkpoint} is not used: {problem}; the run goes on from the one before"
            warnings.warn(text, stacklevel=2)
        return None

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
