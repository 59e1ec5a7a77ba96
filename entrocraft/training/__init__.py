"""One training run from one config: task, model, TRL trainer, entropy control, run directory."""

from entrocraft.control import ControlConfig
from entrocraft.training.config import EvaluationConfig, TaskConfig, TrainConfig

__all__ = ["ControlConfig", "EvaluationConfig", "TaskConfig", "TrainConfig"]
