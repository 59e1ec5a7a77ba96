"""The directory of a study: whose it is, and the parts that are finished."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from entrocraft.lab.dynamics.config import DynamicsConfig
from entrocraft.lab.training.directory import RunDirectory

__all__ = ["StudyDirectory"]

# settings that do not change what is computed
_FREE = ("output", "resume", "cache_dir")


class StudyDirectory:
    """config.yaml, parts/, checkpoints/ and the results of one study."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.parts = path / "parts"
        self.results = path / "dynamics.json"
        self.figure = path / "dynamics.png"
        self._run = RunDirectory(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; see `RunDirectory.locked`."""
        with self._run.locked():
            yield

    def claim(self, config: DynamicsConfig) -> None:
        """Write config.yaml; with `resume=false` remove what an earlier study left.

        Raises:
            ValueError: the directory holds parts of another config, or something else's run.
        """
        if self._run.metrics.exists():
            raise ValueError(
                f"{self.path} holds a training run (metrics.jsonl); choose another output"
            )
        if not config.resume:
            for folder in (self.parts, self._run.checkpoints):
                shutil.rmtree(folder, ignore_errors=True)
            self.results.unlink(missing_ok=True)
            self.figure.unlink(missing_ok=True)
        mine = yaml.safe_load(yaml.safe_dump(config.as_dict()))
        if self.config.exists() and (any(self.parts.glob("*.json")) or self.results.exists()):
            theirs = yaml.safe_load(self.config.read_text()) or {}
            for key in mine:
                if key not in _FREE and theirs.get(key) != mine[key]:
                    raise ValueError(
                        f"{self.path} holds a study with {key}={theirs.get(key)!r}, now asked for "
                        f"{key}={mine[key]!r}; choose another output, or set resume=false to start "
                        "over"
                    )
        self.parts.mkdir(exist_ok=True)
        command = " ".join(["entrocraft", *sys.argv[1:]])
        text = yaml.safe_dump(mine | {"command": command}, sort_keys=False)
        self._write(self.config, text)

    def last_checkpoint(self, until: int) -> str | None:
        """Last whole checkpoint of the training, at step `until` at most."""
        return self._run.last_checkpoint(below=until + 1)

    def forget_checkpoints(self) -> None:
        """Remove what only an unfinished study needs."""
        shutil.rmtree(self._run.checkpoints, ignore_errors=True)

    def load(self, part: str) -> dict[str, Any] | None:
        """Return a finished part, or None."""
        file = self.parts / f"{part}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def save(self, part: str, values: dict[str, Any]) -> None:
        """Write a finished part; a kill leaves it whole or absent."""
        self._write(self.parts / f"{part}.json", json.dumps(values))

    def save_results(self, values: dict[str, Any]) -> None:
        """Write dynamics.json."""
        self._write(self.results, json.dumps(values, indent=1) + "\n")

    def _write(self, file: Path, text: str) -> None:
        partial = file.with_suffix(".partial")
        partial.write_text(text)
        os.replace(partial, file)
