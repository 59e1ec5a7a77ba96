"""One training run from one config: task, model, TRL trainer, entropy control, run directory."""

from entrocraft.lab.training.config import (
    ControlSettings,
    EvaluationConfig,
    TaskConfig,
    TrainConfig,
)

__all__ = ["ControlSettings", "EvaluationConfig", "TaskConfig", "TrainConfig"]
