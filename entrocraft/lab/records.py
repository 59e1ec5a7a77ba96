"""metrics.jsonl, the log of a training run: one JSON object per optimizer step; its one reader."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"

# logged by version 0.1, read for one more release
_RENAMED = {
    "entropy/authority_up": "entropy/reachable_up",
    "entropy/authority_down": "entropy/reachable_down",
    "entropy/realised_change": "entropy/post_update_change",
    "entropy/realised_change_stderr": "entropy/post_update_change_stderr",
    "entropy/spare_used": "entropy/constant_reward_used",
}
_NUMBERS = ("reward", "seconds", "entropy/", "eval/")  # keys that begin so hold numbers


class RunError(ValueError):
    """A run directory that cannot be read; the message names the file, the line and the remedy."""


def read_records(path: str | Path, strict: bool = False) -> list[dict[str, Any]]:
    """Read the whole records of a metrics file, in the order of their steps.

    A record holds ``step`` (int) and numbers as floats; null and text are left out, as are a last
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
    records: dict[int, dict[str, Any]] = {}
    for number, line in lines:
        try:
            record = _parse(line)
        except (ValueError, OverflowError) as error:
            cut = isinstance(error, json.JSONDecodeError) and number == lines[-1][0]
            if strict and not cut:
                what = f"{getattr(error, 'msg', error)}, got {line.strip()[:60]}"
                raise RunError(f"{path}, line {number}: {what}; correct or delete it") from None
            continue
        step = record["step"]
        earlier = records.get(step, {})
        if earlier.keys() & record.keys() - {"step", "seconds"}:
            records = {other: kept for other, kept in records.items() if other < step}
            earlier = {}
        records[step] = earlier | record
    if old := [key for key in _RENAMED if f'"{key}"' in text]:
        from entrocraft.method import EntropyControlWarning

        names = ", ".join(f"{key} is now {_RENAMED[key]}" for key in old)
        message = f"{path} has keys of version 0.1: {names}; the next release does not read them"
        warnings.warn(message, EntropyControlWarning, stacklevel=2)
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
        elif key.startswith(_NUMBERS):
            raise ValueError(f"{key} must be a number or null")
    return record
