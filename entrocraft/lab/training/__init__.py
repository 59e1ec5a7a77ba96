"""One training run from one config: task, model, TRL trainer, entropy control, run directory."""

from entrocraft.lab.training.config import EvaluationConfig, TaskConfig, TrainConfig
from entrocraft.settings import ControlSettings

__all__ = ["ControlSettings", "EvaluationConfig", "TaskConfig", "TrainConfig"]
