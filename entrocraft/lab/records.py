"""metrics.jsonl, the log of a training run: one JSON object per optimizer step; its one reader."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

__all__ = ["METRICS_FILE", "RunError", "read_records"]

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
_LARGEST_STEP = 2**53


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
    renamed: dict[str, str] = {}
    for number, line in lines:
        try:
            record = _parse(line, renamed)
        except (ValueError, OverflowError) as error:
            is_cut = isinstance(error, json.JSONDecodeError)
            if strict and not (is_cut and number == lines[-1][0]):
                what = "not valid JSON" if is_cut else str(error)
                shown = line.strip() if len(line) <= 60 else line.strip()[:60] + "…"
                raise RunError(
                    f"{path}, line {number}: {what}, got {shown}; correct or delete the line"
                ) from None
            continue
        _insert(records, record)
    if renamed:
        from entrocraft.method import EntropyControlWarning

        names = ", ".join(f"{old} is now {new}" for old, new in renamed.items())
        message = f"{path} has keys of version 0.1: {names}; the next release does not read them"
        warnings.warn(message, EntropyControlWarning, stacklevel=2)
    return [records[step] for step in sorted(records)]


def _parse(line: str, renamed: dict[str, str]) -> dict[str, Any]:
    read = json.loads(line)
    step: Any = read.get("step") if isinstance(read, dict) else None
    known = isinstance(step, (int, float)) and not isinstance(step, bool)
    if not known or not 0 <= step < _LARGEST_STEP or step != int(step):
        raise ValueError('expected an object with a whole "step"')
    record: dict[str, Any] = {"step": int(step)}
    for key, value in read.items():
        if key == "step" or value is None:
            continue
        if key in _RENAMED:
            renamed[key] = _RENAMED[key]
        if isinstance(value, (int, float)):
            record[_RENAMED.get(key, key)] = float(value)
        elif key.startswith(_NUMBERS):
            raise ValueError(f"{key} must be a number or null")
    return record


def _insert(records: dict[int, dict[str, Any]], record: dict[str, Any]) -> None:
    step = record["step"]
    earlier = records.get(step, {})
    if earlier.keys() & record.keys() - {"step", "seconds"}:
        earlier = {}
        for void in [other for other in records if other >= step]:
            del records[void]
    records[step] = earlier | record
