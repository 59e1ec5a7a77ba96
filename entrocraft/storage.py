"""Storage: files that are written whole or not at all, and the state that checkpoints carry."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from entrocraft.typed import is_number

__all__ = ["read_checkpoint", "read_number", "write_atomically", "write_checkpoint"]

_CHECKPOINT = "entrocraft.json"
_LARGEST = sys.float_info.max


def write_atomically(path: Path, text: str) -> None:
    """Write a text file in one piece: a reader sees the old file or the new one, never a part.

    Every process writes a partial file of its own, so that several may write the same path.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_checkpoint(folder: Path, method: dict[str, Any], optimizer_steps: float) -> None:
    """Write a method's state, and the steps taken, into a trainer's checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"method": method, "optimizer_steps": optimizer_steps}
    write_atomically(folder / _CHECKPOINT, json.dumps(state))


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], float] | None:
    """Read what `write_checkpoint` wrote; None if there is nothing.

    Raises:
        ValueError: a file of something else.
    """
    file = folder / _CHECKPOINT
    if not file.exists():
        return None
    try:
        state = json.loads(file.read_text())
        # entrocraft 0.1.0 spelled it otherwise
        name = "optimizer_steps" if "optimizer_steps" in state else "optimiser_steps"
        return dict(state["method"]), read_number(state, name, low=0)
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{file} is not the state of an entropy method; restore the file, or delete it to go "
            "on without state"
        ) from None


def read_number(
    state: dict[str, Any],
    name: str,
    kind: type = float,
    low: float = -_LARGEST,
    high: float = _LARGEST,
) -> Any:
    """Number of this kind, float or int, that a state has under a name.

    Raises:
        ValueError, KeyError: none there, of another type (bool or text, say), or out of range.
    """
    value = state[name]
    if is_number(value, kind) and low <= value <= high:
        return kind(value)
    wanted = "a whole number" if kind is int else "a number"
    found = f"{name} is {value!r}"[:80]
    raise ValueError(f"{found}; it has to be {wanted} from {low:g} to {high:g}")
