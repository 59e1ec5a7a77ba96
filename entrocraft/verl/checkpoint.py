"""The method's state beside verl's checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from entrocraft.method import EntropyControlWarning
from entrocraft.storage import read_checkpoint

__all__ = ["checkpoint_folder", "read_state"]


def checkpoint_folder(config: DictConfig, global_steps: int) -> Path:
    """Folder that verl writes at a step, and that it resumes from at that step."""
    trainer, name = config.trainer, f"global_step_{global_steps}"
    if trainer.resume_mode == "resume_path" and Path(trainer.resume_from_path).name == name:
        return Path(trainer.resume_from_path)
    return Path(trainer.default_local_dir) / name


def read_state(folder: Path) -> tuple[dict[str, Any], float] | None:
    """State and steps in a checkpoint; None, with a warning, if the run was not controlled then.

    Raises:
        ValueError: a file that `write_checkpoint` did not write.
    """
    if (found := read_checkpoint(folder)) is None:
        warnings.warn(
            f"{folder} was written without entropy control; control starts afresh here, "
            "and levels relative to the initial entropy are anchored here",
            EntropyControlWarning,
            stacklevel=2,
        )
    return found
