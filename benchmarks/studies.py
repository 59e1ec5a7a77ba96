"""Result files of studies, read: a row for every cell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from entrocraft import schedules
from entrocraft.lab.grid.results import Results
from entrocraft.lab.grid.study import Part, Study
from entrocraft.lab.parsing import config_from_mapping

RESULTS = Path(__file__).parent / "results"


@dataclass
class Result:
    """A result file: its study, and a row for every cell that was made with its settings."""

    study: Study
    cells: pd.DataFrame
    missing: list[str]
    tuning: dict[str, Any]
    command: str

    def group(self, part: Part, method: str, schedule: str) -> pd.DataFrame:
        """The cells of a method on a schedule, by seed."""
        cells = self.cells
        seeds = part.seeds or self.study.seeds_of(method)
        same = (cells["method"] == method) & (cells["schedule"] == schedule)
        return cells[same & cells["seed"].isin(seeds)].sort_values("seed")


def read(path: Path) -> Result:
    """Read a result file of `entrocraft compare`, also one of the first version."""
    data = json.loads(path.read_text()) if path.exists() else {}
    if "cells" in data:
        results = Results(path)
        study = config_from_mapping(Study, results.settings).choose(results.chosen())
        found = [(entry, results.get(study, entry)) for entry in study.entries()]
        rows = [
            _row(cell, entry.method, entry.schedule, entry.seed, study.follows(entry.method))
            for entry, cell in found
            if cell is not None
        ]
        missing = [entry.key for entry, cell in found if cell is None]
        for name, tried in results.tuning.items():
            cells = {key.split("/")[0]: cell for key, cell in results.cells.items()}
            ends = {value: cells.get(f"{name} {value}") for value in tried["tried"]}
            tried["trials"] = {value: cell for value, cell in ends.items() if cell}
        return Result(study, pd.DataFrame(rows), missing, results.tuning, data["command"])
    if "config" in data:  # of the first version
        study = config_from_mapping(Study, data["config"])
        rows = [_row(run, run["group"], "", run["seed"], True) for run in data["runs"]]
    elif "steps" in next(iter(data.get("runs", {}).values()), {}):  # of verl_loop.py
        study = Study(methods={"tilt": {}, "no control": {"control": {"rule": None}}})
        rows = [_verl_row(name, run) for name, run in data["runs"].items()]
    else:
        raise ValueError(f"{path} is no result file with cells or runs; name another one")
    return Result(study, pd.DataFrame(rows), [], data.get("tuning", {}), data["command"])


def with_rivals(
    ours: Result, theirs: Result, ran: Sequence[str], compared: Sequence[str]
) -> Result:
    """Parts that were run again, and the `compared` ones with their rivals from an older file."""
    study = replace(ours.study, parts={name: ours.study.parts[name] for name in (*ran, *compared)})
    parts = [part for part in study.tables if part.name in compared]
    rivals = {name for part in parts for name in part.methods} - {part.reference for part in parts}
    cells = pd.concat([ours.cells, theirs.cells[theirs.cells["method"].isin(rivals)]])
    missing = [key for key in ours.missing if key.split("/")[0] not in rivals]
    return Result(study, cells, missing, {}, ours.command)


def _verl_row(name: str, run: dict[str, Any]) -> dict[str, Any]:
    steps = pd.DataFrame(run["steps"]).set_index("step")
    steps.loc[len(steps)] = 2 * steps.iloc[-1] - steps.iloc[-2]  # the last probe is one step later
    probe = [
        [point["step"], steps["entropy/target"][point["step"]], point["entropy"], point["stderr"]]
        for point in run["probe"]
    ]
    curve = pd.DataFrame(probe, columns=["step", "target", "probe", "stderr"])
    gaps = (curve["probe"] - curve["target"])[1:]
    row = {"method": name, "schedule": "", "seed": 0, "curve": curve, "steered": name == "tilt"}
    row |= {"tracking_error": gaps.abs().mean(), "tracking_bias": gaps.mean()}
    row |= {"final_reward": steps["reward"][-21:-1].mean()}
    row["entropy_start"], row["entropy_end"] = curve["probe"].iloc[[0, -1]]
    return row


def _row(cell: dict[str, Any], method: str, schedule: str, seed: int, follows: bool) -> dict:
    curve = pd.DataFrame(cell["probe"], columns=["step", "target", "probe", "stderr"], dtype=float)
    initial = cell.get("initial", cell.get("target_start"))
    if cell["schedule"] is not None and initial is not None:
        target = schedules.anchor(schedules.from_string(str(cell["schedule"])), initial)
        curve["target"] = [target(step) for step in curve["step"]]
    row = {"method": method, "schedule": schedule, "seed": seed, "initial": initial}
    row |= {"steered": cell.get("steered", cell.get("controlled", follows)), "curve": curve}
    for key in ("tracking_error", "tracking_bias", "final_reward", "kept_fraction"):
        row[key] = cell[key]
    for key in ("saturated_share", "pressure", "probe_stderr"):
        row[key] = cell.get(key)
    row["entropy_start"], row["entropy_end"] = curve["probe"].iloc[[0, -1]]
    for name, at in cell["pass_at"].items():
        row[name] = at["last"] if isinstance(at, dict) else at[1]
    for name, (start, end) in cell.get("evaluated", {}).items():
        row[name], row[f"{name}_first"] = end, start
    return row


def methods_of(part: Part) -> list[str]:
    """The part's methods, the reference first."""
    return list(dict.fromkeys([*filter(None, [part.reference]), *part.methods]))


def values_of(group: pd.DataFrame, key: str) -> list[float]:
    return [] if key not in group else [float(value) for value in group[key].dropna()]


def pass_keys(names: Iterable[str]) -> list[str]:
    """Every pass@k among names, by k."""
    found = [name for name in names if name.startswith("pass@")]
    return sorted(found, key=lambda name: int(name.removeprefix("pass@")))


def reach_rows(data: dict[str, Any]) -> pd.DataFrame:
    """Cells of `reach.py`: one row for each world, setting and learning rate; lists over seeds."""
    cells = pd.DataFrame(data["cells"].values())
    setting = cells["rollouts"].astype(str)
    setting += cells["updates"].map(lambda n: f", {n} updates" if n > 1 else "")
    setting += cells["iterations"].map(lambda n: f", {n} iterations" if n > 1 else "")
    setting += cells["lora"].map({True: ", LoRA", False: ""})
    setting += cells["optimizer"].map(lambda name: ", SGD" if name == "sgd" else "")
    setting += cells["scheduler"].map(lambda name: "" if name == "constant" else ", decaying rate")
    cells["setting"] = setting
    for key in ("error", "bias"):
        cells[key] = 100 * cells[key] / cells["initial"]
    values = ["initial", "entropy_end", "error", "bias", "reward_end"]
    worlds = list(dict.fromkeys(cells["world"]))
    cells["place"] = cells["world"].map(worlds.index)
    index = ["place", "rollouts", "world", "setting", "learning_rate"]
    table = cells.sort_values("seed").pivot_table(values, index, "control", aggfunc=list)
    return table.droplevel(["place", "rollouts"])


def tracking() -> Result:
    """The tracking study: ours with the present code, its rivals with the first version's."""
    ours, first = read(RESULTS / "tracking-0.2.json"), read(RESULTS / "tracking.json")
    methods = set(ours.cells["method"])
    ran = [p for p in ours.study.tables if not p.better_of and methods & set(p.methods)]
    return with_rivals(ours, first, [part.name for part in ran], ("peers",))


def read_json(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())
