"""Reading a run directory: ``config.yaml`` and ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from entrocraft.lab.parsing import flat_keys
from entrocraft.methods import METHODS, follows_target

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"

_PASS = re.compile(r"eval/pass@(\d+)")
_SEED_SUFFIX = re.compile(r"(?:^|[-_ ./])(?:seed|s)[-_=]?(\d+)$", re.IGNORECASE)
_LARGEST_STEP = 2**53
_NO_SETTINGS = ("seed", "name", "output", "command", "resume", "cache_dir", "save_every")
_SHOWN_KEYS = 2
_READ_BY_THE_REPORT = ("reward", "seconds", "entropy/", "eval/")


class RunError(ValueError):
    """A run directory that cannot be read; the message names the file, the line and the remedy."""


@dataclass
class Run:
    """One training run as columns.

    Attributes:
        path: the run directory.
        name: ``name`` of the configuration, else the directory's name.
        config: the configuration as a nested mapping, empty when there is no ``config.yaml``.
        steps: optimizer steps that were logged, ascending, each once.
        metrics: metric key -> one value per entry of ``steps``, NaN where it was not logged.
            Entropies are in nats per token.
        notes: what a reader of the numbers should know about the files, in sentences.
    """

    path: Path
    name: str
    config: dict[str, Any]
    steps: np.ndarray
    metrics: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)

    def column(self, key: str) -> np.ndarray:
        """Return the values of ``key``, one per logged step; all NaN when it was never logged."""
        column = self.metrics.get(key)
        return np.full(len(self.steps), np.nan) if column is None else column

    def points(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (steps, values) at the steps where ``key`` was logged with a finite value."""
        column = self.column(key)
        logged = np.isfinite(column)
        return self.steps[logged], column[logged]

    def has(self, *keys: str) -> bool:
        """Say whether any of ``keys`` was logged at least once."""
        return any(np.isfinite(self.column(key)).any() for key in keys)

    def target_at(self, steps: np.ndarray) -> np.ndarray:
        """Return the target entropy (nats per token) at ``steps``.

        It is read from the records, interpolated between them and held constant outside them;
        NaN when the run logged no target.
        """
        logged_at, target = self.points("entropy/target")
        if not len(target):
            return np.full(len(steps), np.nan)
        return np.interp(steps, logged_at, target)

    @property
    def control(self) -> dict[str, Any]:
        """The ``control`` section of the configuration, empty when there is none."""
        control = self.config.get("control")
        return control if isinstance(control, dict) else {}

    @property
    def rule(self) -> str | None:
        """The acceptance rule or peer by name, None when nothing chose between rollouts."""
        rule = self.control.get("rule")
        return None if rule is None or str(rule).lower() in {"", "none", "null"} else str(rule)

    @property
    def controlled(self) -> bool:
        """Whether entropy was steered, so that the target was a target and not a reference.

        The configuration decides: of the peers only some steer. A run whose configuration names no
        rule counts as controlled when it logged a pressure other than zero.
        """
        if "rule" in self.control:
            return self.rule is not None and (self.rule not in METHODS or follows_target(self.rule))
        return bool((np.abs(self.points("entropy/pressure")[1]) > 0).any())

    @property
    def seed(self) -> int | None:
        """The seed of the run, None when the configuration does not say."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    @property
    def group(self) -> str:
        """The name without its seed: ``tilt-seed3`` and ``tilt_s3`` (seed 3) are both ``tilt``.

        Runs of one group are the same experiment with different seeds. A name that is nothing
        but a seed takes the name of the parent directory.
        """
        match = _SEED_SUFFIX.search(self.name)
        if match is None or (self.seed is not None and int(match[1]) != self.seed):
            return self.name
        return self.name[: match.start()] or self.path.resolve().parent.name or self.name

    @property
    def command(self) -> str | None:
        """The command that started the run, when the configuration kept it."""
        command = self.config.get("command")
        if isinstance(command, (list, tuple)):
            return shlex.join(str(word) for word in command)
        return None if command is None else str(command)

    @property
    def ks(self) -> list[int]:
        """Every k of the logged pass@k, ascending."""
        found = (_PASS.fullmatch(key) for key in self.metrics)
        return sorted({int(match[1]) for match in found if match and self.has(match[0])})


def load_run(path: str | Path) -> Run:
    """Load a run directory.

    A last line that is cut off (the run is still writing, or was killed) is left out and noted.
    When a run was killed and resumed, the later record of a step replaces the earlier one, and
    records after that step which belong to the abandoned part are dropped. Two records of one
    step that share no metric are one record written in two parts and are merged.

    Args:
        path: a directory with ``metrics.jsonl`` and, normally, ``config.yaml``.

    Raises:
        RunError: no such directory, no metrics yet, or a line that is not a metrics record.
    """
    path = Path(path)
    metrics_file = path / METRICS_FILE
    if not path.is_dir():
        raise RunError(
            f"{path} is not a directory; give the run directory that holds {METRICS_FILE}"
        )
    if not metrics_file.is_file():
        raise RunError(
            f"{metrics_file} does not exist; give a run directory, one per run "
            f"(training writes {METRICS_FILE} at its first optimizer step)"
        )
    notes: list[str] = []
    records = _read_records(metrics_file, notes)
    config = _read_config(path / CONFIG_FILE, notes)
    steps = sorted(records)
    keys = sorted({key for record in records.values() for key in record})
    metrics = {
        key: np.array([records[step].get(key, math.nan) for step in steps], dtype=float)
        for key in keys
    }
    name = str(config.get("name") or "").strip() or path.resolve().name
    return Run(path, name, config, np.array(steps, dtype=int), metrics, notes)


def load_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Load several runs for one report; runs share a group only if nothing but the seed differs.

    Runs of one name with other settings get these into their names, as in "tilt, steps=30"; runs
    of the same settings and seed get their directories.

    Raises:
        RunError: a run cannot be read, or is given twice; see `load_run`.
    """
    places = [Path(path).resolve() for path in paths]
    for place in places:
        if places.count(place) > 1:
            raise RunError(f"{place} is given twice; give each run once")
    runs = [load_run(path) for path in paths]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    for name, members in groups.items():
        _tell_apart(name, members)
    return runs


def _tell_apart(group: str, runs: list[Run]) -> None:
    settings = [_settings(run.config) for run in runs]
    keys = dict.fromkeys(key for known in settings for key in known)
    other = [key for key in keys if len({str(known.get(key)) for known in settings}) > 1]
    if other:
        for run, known in zip(runs, settings, strict=True):
            shown = [f"{key.rpartition('.')[2]}={known.get(key)}" for key in other[:_SHOWN_KEYS]]
            seed = "" if run.seed is None else f" seed{run.seed}"
            run.name = f"{', '.join([group, *shown])}{seed}"
    named: dict[tuple[str, int | None], list[Run]] = {}
    for run in runs:
        if run.seed is not None:
            named.setdefault((run.group, run.seed), []).append(run)
    for same in named.values():
        for run in same if len(same) > 1 else []:
            run.name = f"{run.group} ({run.path})"


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What makes an experiment, as one level of dotted keys: all but seed, names and places."""
    return flat_keys({key: config[key] for key in config if key not in _NO_SETTINGS})


def _read_config(file: Path, notes: list[str]) -> dict[str, Any]:
    if not file.is_file():
        notes.append(f"There is no {CONFIG_FILE}, so name and method are guesses.")
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise RunError(f"{file} is not UTF-8 text; correct or remove the file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        problem = getattr(error, "problem", None) or "unreadable"
        raise RunError(f"{where}: not valid YAML ({problem}); correct or remove the file") from None
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise RunError(
            f"{file}, line 1: expected a mapping such as 'name: my-run', got "
            f"{type(config).__name__}; correct or remove the file"
        )
    return config


def _read_records(file: Path, notes: list[str]) -> dict[int, dict[str, float]]:
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip(" \t\r\0")]
    records: dict[int, dict[str, float]] = {}
    for position, (number, line) in enumerate(lines):
        try:
            parsed = json.loads(line)
        except ValueError:
            if position == len(lines) - 1:
                notes.append(f"Line {number} of {METRICS_FILE} is cut off and was left out.")
                continue
            raise RunError(
                f"{file}, line {number}: not valid JSON: {_excerpt(line)}; a run that is killed "
                "while writing leaves such a line: delete it and try again"
            ) from None
        step, values = _parse_record(parsed, f"{file}, line {number}", line)
        _insert(records, step, values)
    if not records:
        raise RunError(
            f"{file} holds no complete record yet; wait for the first optimizer step "
            "or leave this run out"
        )
    return records


def _parse_record(record: Any, where: str, line: str) -> tuple[int, dict[str, float]]:
    step: Any = record.get("step") if isinstance(record, dict) else None
    known = isinstance(step, (int, float)) and not isinstance(step, bool)
    if not known or step != step // 1 or not 0 <= step < _LARGEST_STEP:
        raise RunError(
            f'{where}: expected an object with a whole "step", got {_excerpt(line)}; '
            "delete the line or add its step"
        )
    values = {}
    for key, value in record.items():
        if key == "step" or value is None:
            continue
        if isinstance(value, (bool, int, float)):
            values[key] = float(value)
        elif key.startswith(_READ_BY_THE_REPORT):
            raise RunError(
                f"{where}: {key} must be a number or null, got {_excerpt(repr(value))}; "
                "correct or delete the line"
            )
    return int(step), values


def _insert(records: dict[int, dict[str, float]], step: int, values: dict[str, float]) -> None:
    earlier = records.get(step, {})
    if set(earlier) & set(values) - {"seconds"}:
        for later in [other for other in records if other >= step]:
            del records[later]
        records[step] = values
    else:
        records[step] = {**earlier, **values}


def _excerpt(text: str, length: int = 60) -> str:
    text = text.strip()
    return text if len(text) <= length else text[:length] + "…"
