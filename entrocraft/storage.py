"""Storage: files that are written whole or not at all, and the state that checkpoints carry."""

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["read_checkpoint", "write_atomically", "write_checkpoint"]

_CHECKPOINT = "entrocraft.json"


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
        return dict(state["method"]), float(state[name])
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{file} is not the state of an entropy method; restore the file, or delete it to go "
            "on without state"
        ) from None
