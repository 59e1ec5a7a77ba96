"""One training run from one config: task, model, TRL trainer, entropy control, run directory."""

from entrocraft.training.config import ControlConfig, EvaluationConfig, TaskConfig, TrainConfig

__all__ = ["ControlConfig", "EvaluationConfig", "TaskConfig", "TrainConfig"]
