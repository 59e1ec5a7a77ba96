"""The method's state beside verl's checkpoints."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from entrocraft.method import EntropyControlWarning
from entrocraft.storage import write_atomically

__all__ = ["checkpoint_folder", "read_state", "write_state"]

_FILE = "entrocraft.json"


def checkpoint_folder(config: DictConfig, global_steps: int) -> Path:
    """Folder that verl writes at a step, and that it resumes from at that step."""
    trainer, name = config.trainer, f"global_step_{global_steps}"
    if trainer.resume_mode == "resume_path" and Path(trainer.resume_from_path).name == name:
        return Path(trainer.resume_from_path)
    return Path(trainer.default_local_dir) / name


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _FILE, json.dumps(state))


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return what was written; None, with a warning, if the run was not controlled then.

    Raises:
        ValueError: a file that is not what `write_state` writes.
    """
    file = folder / _FILE
    if not file.exists():
        warnings.warn(
            f"{folder} was written without entropy control; control starts afresh here, "
            "and levels relative to the initial entropy are anchored here",
            EntropyControlWarning,
            stacklevel=2,
        )
        return None
    try:
        state = json.loads(file.read_text())
        # entrocraft 0.1.0 spelled it otherwise
        steps = state["optimizer_steps" if "optimizer_steps" in state else "optimiser_steps"]
        return {"method": state["method"], "optimizer_steps": steps}
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{file} is not the state of an entropy method; restore the file, or delete it to go "
            "on without state"
        ) from None
