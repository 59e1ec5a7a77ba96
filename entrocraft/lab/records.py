"""The log of a training run, one record per optimizer step: metrics.jsonl and what trackers keep.

The one reader of our own runs and of any other that transformers' Trainer has logged.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

Record = dict[str, Any]

METRICS_FILE = "metrics.jsonl"
ROLLOUTS_FILE = "rollouts.jsonl"
SCHEDULE = "schedule"  # text: what a run was told to follow from this step on
_LOOKED_FOR = (
    f"{METRICS_FILE}, trainer_state.json (there or in checkpoint-*), TensorBoard's "
    "events.out.tfevents.* (there or in runs/*), trackio's *.db or *.parquet"
)

# logged by version 0.1, read for one more release
_RENAMED = {
    "entropy/authority_up": "entropy/reachable_up",
    "entropy/authority_down": "entropy/reachable_down",
    "entropy/realised_change": "entropy/post_update_change",
    "entropy/realised_change_stderr": "entropy/post_update_change_stderr",
    "entropy/spare_used": "entropy/constant_reward_used",
}
_NUMBERS = ("reward", "seconds", "entropy/", "eval/")  # keys that begin so hold numbers
_DRAWN = ("entropy", "reward", "eval/")  # beginnings of what is read of a tracker's log
# logged between steps; the rest is of the last step
_OF_POLICY = ("entropy/probe", "eval/", SCHEDULE)


class RunError(ValueError):
    """A run directory that cannot be read; the message names the file, the line and the remedy."""


def read(path: str | Path) -> dict[str, list[Record]]:
    """Read the runs in a directory: name -> records; the name is empty where there is one run.

    The first of these that has any entropy or reward: metrics.jsonl; the furthest
    trainer_state.json of the directory and its checkpoints; TensorBoard's event files in the
    directory, else in its runs/*; trackio's databases, else its parquet files, with all their runs.
    `path` may be a file of trackio's, for the runs of one project.

    Raises:
        RunError: nothing of it can be read, or the package tensorboard is missing for it.
    """
    path = Path(path)
    if not path.exists():
        raise RunError(f"{path} is not a directory; give that of a run")
    for runs_of in (_metrics_file, _trainer_state, _event_files, _trackio):
        if runs := {name: records for name, records in runs_of(path).items() if records}:
            return runs
    raise RunError(f"{path} holds no run with entropy or reward; looked for {_LOOKED_FOR}")


def _metrics_file(path: Path) -> dict[str, list[Record]]:
    file = path / METRICS_FILE
    if not file.is_file():
        return {}
    if not (records := read_records(file, strict=True)):
        raise RunError(f"{file} holds no complete record yet; wait for the first optimizer step")
    return {"": records}


def _trainer_state(path: Path) -> dict[str, list[Record]]:
    """The log in the state that transformers' Trainer saves with checkpoints and at the end."""
    states = {}
    for file in [*path.glob("checkpoint-*/trainer_state.json"), path / "trainer_state.json"]:
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            states[state["global_step"]] = [(log["step"], log) for log in state["log_history"]]
        except (OSError, ValueError, TypeError, KeyError):  # not there, or cut by a kill
            continue
    return {"": _logged(states[max(states)])} if states else {}


def _event_files(path: Path) -> dict[str, list[Record]]:
    """TensorBoard's scalars; the files of a run that was resumed go on from one another."""
    pattern = "events.out.tfevents.*"
    files = list(path.glob(pattern)) or list(path.glob(f"runs/*/{pattern}"))
    if not files:
        return {}
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        remedy = "TensorBoard logs need its package: pip install tensorboard"
        raise RunError(f"{files[0]} cannot be read ({error}); {remedy}") from error
    logs = []
    for file in sorted(files, key=lambda file: file.name):  # begins with the time it was made
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    logs.append((event.step, {value.tag: float(make_ndarray(value.tensor))}))
    return {"": _logged(logs)}


def _trackio(path: Path) -> dict[str, list[Record]]:
    """The runs in trackio's local files, by name; one file for each project.

    A database has a table `metrics` (id, run_id, run_name, step, metrics as JSON), in which older
    versions have no run_id; an exported parquet file has each metric as a column of its own.
    """
    files = [path] if path.is_file() else list(path.glob("*.db")) or list(path.glob("*.parquet"))
    rows: list[dict[str, Any]] = []
    for file in sorted(files):
        try:
            rows += _rows_of_parquet(file) if file.suffix == ".parquet" else _rows_of_database(file)
        except sqlite3.Error:  # of another program
            continue
    logs: dict[tuple[str, str], list[tuple[int, Mapping[str, Any]]]] = {}
    for row in rows:
        run = str(row["run_name"]), str(row.get("run_id"))
        # trackio's own step counts the calls of log
        step = row.get("train/global_step", row["step"])
        logs.setdefault(run, []).append((int(step), row))
    names = [name for name, _ in logs]
    return {
        name if names.count(name) == 1 else f"{name} ({identity[:8]})": _logged(of_run)
        for (name, identity), of_run in logs.items()
    }


def _rows_of_database(file: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("SELECT * FROM metrics ORDER BY id")]
    return [row | json.loads(row["metrics"]) for row in rows]


def _rows_of_parquet(file: Path) -> list[dict[str, Any]]:
    import pandas as pd

    table = pd.read_parquet(file)
    if not {"id", "run_name", "step"} <= set(table):
        return []  # of trackio's too: configurations, traces, artifacts
    return [row.dropna().to_dict() for _, row in table.sort_values("id").iterrows()]


def _logged(logs: Iterable[tuple[int, Mapping[str, Any]]]) -> list[Record]:
    """Return the records of a trainer's log, given as (optimizer steps taken, metrics) in order.

    The trainer logs a step when it is done, our records count the steps taken before.
    """
    records = []
    for done, metrics in logs:
        for key, value in metrics.items():
            key = key.removeprefix("train/")
            known = key.startswith(_DRAWN) and isinstance(value, (int, float))
            step = done if key.startswith(_OF_POLICY) else max(done - 1, 0)
            if known and abs(value) <= sys.float_info.max:  # no NaN, and no integer beyond
                records.append({"step": step, _RENAMED.get(key, key): float(value)})
            elif key == SCHEDULE and isinstance(value, str):
                records.append(Record(step=step, schedule=value))
    return _joined(records)


def read_records(path: str | Path, strict: bool = False) -> list[Record]:
    """Read the whole records of a metrics file, in the order of their steps.

    A record holds ``step`` (int) and numbers as floats; null and other text than a
    ``schedule`` are left out, as are a last
    line that a kill cut and, unless ``strict``, other lines that are no record. Keys of version 0.1
    get their present names, with one warning per file. A step that is logged again replaces the
    earlier record and voids those that followed it; two records of one step that share no metric
    are merged. A file that does not exist has no records.

    Raises:
        RunError: with ``strict``, a line is no record; the message names it.
    """
    path = Path(path)
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip(" \t\r\0")]
    records = []
    for number, line in lines:
        try:
            records.append(_parse(line))
        except (ValueError, OverflowError) as error:
            cut = isinstance(error, json.JSONDecodeError) and number == lines[-1][0]
            if strict and not cut:
                what = f"{getattr(error, 'msg', error)}, got {line.strip()[:60]}"
                raise RunError(f"{path}, line {number}: {what}; correct or delete it") from None
    if old := [key for key in _RENAMED if f'"{key}"' in text]:
        from entrocraft.method import EntropyControlWarning

        names = ", ".join(f"{key} is now {_RENAMED[key]}" for key in old)
        message = f"{path} has keys of version 0.1: {names}; the next release does not read them"
        warnings.warn(message, EntropyControlWarning, stacklevel=2)
    return _joined(records)


def read_rollouts(path: str | Path) -> list[Record]:
    """Read the whole records of a file of sample rollouts, `rollouts.jsonl`; none if there is none.

    A record has ``step`` and ``rollouts``, mappings as `RolloutSamples` writes them.
    """
    path, records = Path(path), []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.split("\n"):
        try:
            record = json.loads(line)
            if type(record["step"]) is int and all(isinstance(r, dict) for r in record["rollouts"]):
                records.append(record)
        except (ValueError, TypeError, KeyError):  # cut by a kill
            continue
    return records


def _joined(parts: list[Record]) -> list[Record]:
    """Return one record per step, in order of the steps; see `read_records`."""
    records: dict[int, Record] = {}
    for part in parts:
        step = part["step"]
        earlier = records.get(step, {})
        if earlier.keys() & part.keys() - {"step", "seconds", SCHEDULE}:
            records = {other: kept for other, kept in records.items() if other < step}
            earlier = {}
        records[step] = earlier | part
    return [records[step] for step in sorted(records)]


def _parse(line: str) -> dict[str, Any]:
    read = json.loads(line)
    step: Any = read.get("step") if isinstance(read, dict) else None
    if type(step) not in (int, float) or not 0 <= step < 2**53 or step != int(step):
        raise ValueError('expected an object with a whole "step"')
    record: dict[str, Any] = {"step": int(step)}
    for key, value in read.items():
        if key == "step" or value is None:
            continue
        if isinstance(value, (int, float)):
            record[_RENAMED.get(key, key)] = float(value)
        elif key == SCHEDULE and isinstance(value, str):
            record[key] = value
        elif key.startswith(_NUMBERS):
            raise ValueError(f"{key} must be a number or null")
    return record
