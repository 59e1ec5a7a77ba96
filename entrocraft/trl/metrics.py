"""Metrics of a TRL run as `metrics.jsonl`, the file that `entrocraft report` draws from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from entrocraft.storage import write_atomically

__all__ = ["MetricsFile"]

Record = dict[str, Any]

_LOGGED = (
    "entropy",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "loss",
    "grad_norm",
    "learning_rate",
    "kl",
    "completions/mean_length",
    "completions/clipped_ratio",
)
_LOGGED_BELOW = ("entropy/", "eval/")


class MetricsFile(TrainerCallback):
    """Trainer callback that writes one JSON object per log of the trainer into `metrics.jsonl`.

        trainer.add_callback(MetricsFile())

    A record's `step` counts the optimizer steps taken before its rollouts, one less than the
    trainer's; with `logging_steps` above 1 it is the last step of those that the record averages.
    The main process alone writes. A run that resumes goes on in the file: what it had logged after
    its checkpoint is dropped, so that no step is there twice.

    Args:
        path: of the file; by default `metrics.jsonl` in the trainer's `output_dir`.
        show: called with every record in the file, on resumption with the earlier ones too.
    """

    def __init__(
        self, path: str | Path | None = None, show: Callable[[Record], None] | None = None
    ) -> None:
        self.path = path
        self.show = show
        self._held: dict[str, Any] = {}  # logged between steps, for the next record
        self._start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what was recorded before the step that the run starts from."""
        if not state.is_world_process_zero:
            return
        path = self._file(args)
        kept = [r for r in _whole_records(path) if r["step"] < state.global_step]
        before = max((r.get("seconds", 0.0) for r in kept), default=0.0)
        self._start, self._held = time.perf_counter() - before, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        if self.show is not None:
            for record in kept:
                self.show(record)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Turn the trainer's log of a step into a record; other logs wait for the next one."""
        if not state.is_world_process_zero:
            return
        for key, value in (logs or {}).items():
            known = key in _LOGGED or key.startswith(_LOGGED_BELOW)
            if known and isinstance(value, (int, float)) and math.isfinite(value):
                self._held[key] = float(value)
            elif key == "schedule" and isinstance(value, str):
                self._held[key] = value  # that rules from here on; see `Steering`
        if "loss" in (logs or {}):
            self._write(args, state.global_step - 1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what was logged of the final policy."""
        if self._held:
            self._write(args, state.global_step)

    def _file(self, args: Any) -> Path:
        return Path(self.path or Path(args.output_dir) / "metrics.jsonl")

    def _write(self, args: Any, step: int) -> None:
        seconds = round(time.perf_counter() - self._start, 3)
        record = {"step": step, "seconds": seconds, **self._held}
        self._held = {}
        with self._file(args).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.show is not None:
            self.show(record)


def _whole_records(path: Path) -> list[Record]:
    """Records of an earlier run; unreadable lines are skipped."""
    records = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), (int, float)):
            records.append(record)
    return records
