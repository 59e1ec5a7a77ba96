"""The method's memory beside verl's checkpoints."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from entrocraft.method import EntropyControlWarning

__all__ = ["checkpoint_folder", "read_memory", "write_memory"]

FILE = "entrocraft.json"


def checkpoint_folder(config: DictConfig, global_steps: int) -> Path:
    """Folder that verl writes at a step, and that it resumes from at that step."""
    trainer = config.trainer
    if trainer.resume_mode == "resume_path":
        named = Path(trainer.resume_from_path)
        if named.name == f"global_step_{global_steps}":
            return named
    return Path(trainer.default_local_dir) / f"global_step_{global_steps}"


def write_memory(folder: Path, memory: dict[str, Any]) -> None:
    """Write the memory whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.partial"
    partial.write_text(json.dumps(memory))
    os.replace(partial, folder / FILE)


def read_memory(folder: Path) -> dict[str, Any] | None:
    """Return what was written; None, with a warning, if the run was not controlled then.

    Raises:
        ValueError: a file that is not what `write_memory` writes.
    """
    file = folder / FILE
    if not file.exists():
        warnings.warn(
            f"{folder} was written without entropy control; control starts here without memory, "
            "and levels relative to the initial entropy are anchored here",
            EntropyControlWarning,
            stacklevel=2,
        )
        return None
    try:
        memory = json.loads(file.read_text())
        assert isinstance(memory, dict)
        assert {"method", "optimizer_steps"} <= memory.keys()
    except (ValueError, AssertionError):
        raise ValueError(
            f"{file} is not the memory of an entropy method; restore the file, or delete it to go "
            "on without memory"
        ) from None
    return memory
