"""The result file of a study, and the numbers of a finished run that go into it."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from entrocraft import schedules
from entrocraft.lab.grid.study import Entry, Study
from entrocraft.lab.parsing import config_from_mapping, flat_keys
from entrocraft.lab.report import load_run, summarize
from entrocraft.lab.report.summary import BURN_IN
from entrocraft.storage import write_atomically


class Results:
    """Settings, versions, missing cells, and one line for every cell: key -> its numbers."""

    def __init__(self, path: Path) -> None:
        found = json.loads(path.read_text()) if path.exists() else {"cells": {}}
        if "cells" not in found:
            remedy = "move it away, or choose another file with --results"
            raise ValueError(f"{path} is no result file of a study, it has no cells; {remedy}")
        self.path = path
        self.cells: dict[str, dict[str, Any]] = found["cells"]
        self.tuning: dict[str, dict[str, Any]] = found.get("tuning", {})
        self._versions: list[dict[str, str]] = found.get("versions", [])
        self.settings: dict[str, Any] = found.get("settings", {})

    def get(self, study: Study, entry: Entry) -> dict[str, Any] | None:
        """What is known of a cell; None if nothing or if it was made with other settings."""
        if "tune" in study.of(entry.method):
            return None  # its settings are not known yet
        digest, cell = study.digest(entry), self.cells.get(entry.key)
        text = study.schedule(entry.schedule).get("text")
        follows = study.follows(entry.method)
        same = cell is not None and cell["settings_hash"] == digest
        if cell is not None and same and (follows or text in (None, cell["schedule"])):
            return cell
        if follows or text is None:
            return None
        # its run is the same under every schedule
        others = [other for other in self.cells.values() if other["settings_hash"] == digest]
        return aim(others[0], text) if others else None

    def check(self, study: Study, entries: list[Entry]) -> None:
        """Refuse to mix settings, with a ValueError that names cell, difference and remedies."""
        for entry in entries:
            if entry.key in self.cells and self.get(study, entry) is None:
                raise ValueError(
                    f"the cell {entry.key} of {self.path} was made with other settings than are "
                    f"asked for now{self._difference(study, entry)}; put the settings back, leave "
                    "its part out with --only, choose another file with --results, or train it "
                    "anew with --fresh"
                )

    def _difference(self, study: Study, entry: Entry) -> str:
        """Name the settings that differ, if the file still knows those that a cell was made by."""
        try:
            old = config_from_mapping(Study, self.settings).choose(self.chosen())
            then, now = flat_keys(old.keys(entry)), flat_keys(study.keys(entry))
            known = old.digest(entry) == self.cells[entry.key]["settings_hash"]
        except (KeyError, ValueError):
            known = False
        if not known:
            return ""
        changed = [key for key in then | now if then.get(key) != now.get(key)]
        return ": " + ", ".join(f"{k} {then.get(k)} -> {now.get(k)}" for k in changed[:3])

    def add(self, entry: Entry, cell: dict[str, Any]) -> None:
        """Put in a cell that was run in this environment."""
        self.cells[entry.key] = cell
        names = ("torch", "trl", "transformers", "entrocraft")
        here = {"python": platform.python_version()} | {name: version(name) for name in names}
        if here not in self._versions:
            self._versions.append(here)

    def chosen(self) -> dict[str, Any]:
        """The values that were best, of the methods that have tried all of theirs."""
        return {name: found["chosen"] for name, found in self.tuning.items() if found["done"]}

    def write(self, study: Study) -> None:
        """Write the whole file anew, so that a stop at any time leaves a whole one."""
        chosen = study.choose(self.chosen())
        entries = chosen.entries()
        order = {entry.key: place for place, entry in enumerate(entries)}
        head = {
            "command": shlex.join(["entrocraft", *sys.argv[1:]]),
            "settings": study.settings,
            "versions": self._versions,
            "missing": [entry.key for entry in entries if self.get(chosen, entry) is None],
            "tuning": self.tuning,
        }
        lines = [f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items()]
        rows = [
            f"  {json.dumps(key)}: {json.dumps(self.cells[key], allow_nan=False)}"
            for key in sorted(self.cells, key=lambda key: (order.get(key, len(order)), key))
        ]
        text = "{\n" + "".join(lines) + ' "cells": {\n' + ",\n".join(rows) + "\n }\n}\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text)


def measure(study: Study, entry: Entry) -> dict[str, Any]:
    """Read the numbers of a cell from the directory of its finished run (nats per token).

    `probe` is [step, target, probe, its standard error] of every probe. The target is what the run
    logged; for a run that follows nothing it is the schedule from the run's own first entropy.
    """
    run = load_run(study.directory(entry))
    summary = summarize(run)
    probe = ["entropy/target", "entropy/probe", "entropy/probe_stderr"]
    frame = run.frame.reindex(columns=[*probe, "entropy/measured", "entropy/pressure"])
    # a target is a curve: between its records it is interpolated
    frame["entropy/target"] = frame["entropy/target"].interpolate("index", limit_direction="both")
    points = frame.dropna(subset=["entropy/probe"])[probe]
    pressure = frame["entropy/pressure"].abs().mean() if summary.controlled else None
    named = study.schedule(entry.schedule).get("text")
    names = ("final_reward", "kept_fraction", "saturated_share", "entropy_start", "entropy_end")
    cell = {
        "settings_hash": study.digest(entry),
        "schedule": named or summary.schedule,
        "steered": summary.controlled,
        "initial": _rounded(frame["entropy/measured"].dropna()[:1].mean()),
        **{name: _rounded(getattr(summary, name)) for name in names},
        "pass_at": {
            name: [_rounded(at.first), _rounded(at.last)] for name, at in summary.pass_at.items()
        },
        "evaluated": {
            name: [_rounded(value) for value in ends] for name, ends in summary.evaluated.items()
        },
        "pressure": _rounded(pressure),
        "seconds": _rounded(summary.seconds, 1),
        "probe": [[int(step), *map(_rounded, row)] for step, *row in points.itertuples()],
    }
    return aim(cell, named) if named and not study.follows(entry.method) else _distances(cell)


def aim(cell: dict[str, Any], text: str) -> dict[str, Any]:
    """Return a cell with another schedule as its target, and the distances from that."""
    target = schedules.anchor(schedules.from_string(text), cell["initial"])
    curve = [[step, _rounded(target(step)), *rest] for step, _, *rest in cell["probe"]]
    return _distances(cell | {"schedule": text, "probe": curve})


def _distances(cell: dict[str, Any]) -> dict[str, Any]:
    """Add the mean distance of the probe from the target after the burn-in, and its sign."""
    late = pd.DataFrame(cell["probe"], columns=["step", "target", "probe", "stderr"], dtype=float)
    late = late[late["step"] > BURN_IN]
    gaps = late["probe"] - late["target"]
    numbers = {
        "tracking_error": _rounded(gaps.abs().mean()),
        "tracking_bias": _rounded(gaps.mean()),
        "probe_stderr": _rounded(late["stderr"].mean()),
    }
    return {key: cell[key] for key in cell if key != "probe"} | numbers | {"probe": cell["probe"]}


def _rounded(value: float | None, digits: int = 5) -> float | None:
    return round(float(value), digits) if value is not None and np.isfinite(value) else None
