"""verl's V1 trainers with entropy control, registered under names of their own."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf, open_dict
from torch import Tensor
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from entrocraft.adapter import run_decision
from entrocraft.effects import TOKEN_LEVELS
from entrocraft.method import Decision, EntropyControlWarning, Method
from entrocraft.storage import write_checkpoint
from entrocraft.verl.adapter import TrainingBatch, measure
from entrocraft.verl.checkpoint import checkpoint_folder, read_state
from entrocraft.verl.engine import FLAG
from entrocraft.verl.plugin import SUPPORTED, trainer_name
from entrocraft.verl.settings import method_of

_Trainer: Any = object  # for the type checker: the mixin's next class is one of verl's trainers

__all__ = [
    "EntropyControlColocateAsync",
    "EntropyControlMixin",
    "EntropyControlSeparateAsync",
    "EntropyControlSync",
    "check_seams",
]


class EntropyControlMixin(_Trainer):
    """Adds entropy control to one of verl's V1 trainers: put it before the trainer's class.

    After verl has computed advantages, the method decides once on the rollouts of a batch; rows of
    a rollout are decided together, padding rows not. Masks and normalizers stay verl's.
    The schedule's clock counts optimizer steps: a batch that makes four mini-batches takes four.

    Attributes:
        mode: verl's own name of the trainer.
        entropy_control: the method, from the section `entrocraft` of the configuration.
        last_decision: on the latest batch; None before the first.
    """

    mode: str
    entropy_control: Method
    last_decision: Decision | None = None

    def __init__(self, config: Any) -> None:
        self.entropy_control = method_of(config)
        self._optimizer_steps = 0.0
        self._before: TrainingBatch | None = None
        self._measured: dict[str, Tensor] | None = None
        self._unscored = False
        with open_dict(config):
            # verl compares the mode with its own names, and looks up settings by it
            config.trainer.v1.trainer_mode = self.mode
        super().__init__(config)

    def fit(self, agent_loop_manager: Any) -> None:
        """Check the schedule over the whole run, then train."""
        control, actor = self.entropy_control, self.config.actor_rollout_ref.actor
        steps = round(self.total_training_steps * self._usual_steps())
        control.prepare(vocabulary=max(len(self.tokenizer), self.tokenizer.vocab_size), steps=steps)
        kind = OmegaConf.select(actor, "optim.lr_scheduler_type", default="constant")
        decay = None if kind == "constant" else f"actor.optim.lr_scheduler_type: {kind}"
        rollouts = actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n
        for text in control.start_warnings(steps, rollouts, decay):
            warnings.warn(text, EntropyControlWarning, stacklevel=2)
        super().fit(agent_loop_manager)

    def _usual_steps(self) -> float:
        """Optimizer steps of a training step, as configured."""
        actor = self.config.actor_rollout_ref.actor
        return self.config.data.train_batch_size / actor.ppo_mini_batch_size * actor.ppo_epochs

    def _steps_of(self, batch: Any) -> float:
        """Optimizer steps that the actor makes of a batch."""
        actor = self.config.actor_rollout_ref.actor
        rows = actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n
        return len(batch) / rows * actor.ppo_epochs

    def _compute_old_log_prob(self, batch: Any, metrics: dict) -> Any:
        correction = self.config.algorithm.get("rollout_correction", None)
        bypass = bool(correction and correction.get("bypass_mode", False))
        sensitivity = self.entropy_control.effect in TOKEN_LEVELS
        if sensitivity:
            batch.extra_info[FLAG] = True
        batch = super()._compute_old_log_prob(batch, metrics)
        batch.extra_info.pop(FLAG, None)
        # in bypass mode verl makes no pass: the old log-probabilities are those of the rollouts
        method = self.entropy_control
        pass_needed = sensitivity or method.extra_pass or method.token_scope is not None
        self._measured = measure(self, batch, sensitivity) if bypass and pass_needed else None
        self._unscored = bypass and not pass_needed
        return batch

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        batch = super()._compute_advantage(batch, metrics)
        self._before = None
        if self.config.trainer.critic_warmup > self.global_steps:
            return batch  # the actor is not updated yet
        step = round(self._optimizer_steps), self._steps_of(batch)
        decided = TrainingBatch(
            self, batch, metrics, *step, measured=self._measured, unscored=self._unscored
        )
        if (decision := run_decision(decided)) is not None:
            if decision.stop is not None:
                raise RuntimeError(f"{decision.stop}; go on from the last checkpoint")
            self.last_decision = decision
            self._before = None if self._unscored else decided
            batch = decided.batch
        return batch

    def _update_actor(self, batch: Any, metrics: dict) -> Any:
        steps = self._steps_of(batch)
        batch = super()._update_actor(batch, metrics)
        self._optimizer_steps += steps
        before, self._before = self._before, None
        # separate_async scores later mini-batches of a step under the step's first weights, so
        # what they moved by themselves is not known
        if before is not None and self.entropy_control.remeasure and not self.local_trigger_step:
            before.remeasure(batch, metrics)
        return batch

    def _save_checkpoint(self) -> None:
        # before verl's own files: it names the checkpoint as the latest when it has written all
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        write_checkpoint(folder, self.entropy_control.state_dict(), self._optimizer_steps)
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        found = read_state(checkpoint_folder(self.config, self.global_steps))
        if found is None:
            self._optimizer_steps = self.global_steps * self._usual_steps()
        else:
            method, self._optimizer_steps = found
            self.entropy_control.load_state_dict(method)


_SEAMS = (
    "fit",
    "_compute_old_log_prob",
    "_compute_advantage",
    "_update_actor",
    "_save_checkpoint",
    "_load_checkpoint",
)


def check_seams(trainer: type) -> None:
    """Refuse a verl whose trainer lacks a method of the mixin or has other parameters.

    Raises:
        RuntimeError: names the method.
    """
    for name in _SEAMS:
        method = getattr(trainer, name, None)
        found = None if method is None else list(inspect.signature(method).parameters)
        wanted = list(inspect.signature(getattr(EntropyControlMixin, name)).parameters)
        if found != wanted:
            state = "is missing" if found is None else f"takes ({', '.join(found)})"
            raise RuntimeError(
                f"verl's {trainer.__name__}.{name} {state}, entrocraft expects "
                f"({', '.join(wanted)}): this verl is not known. Supported is verl {SUPPORTED}"
            )


for _trainer in (PPOTrainerSync, PPOTrainerColocateAsync, PPOTrainerSeparateAsync):
    check_seams(_trainer)


@register_trainer(trainer_name("sync"))
class EntropyControlSync(EntropyControlMixin, PPOTrainerSync):
    """verl's trainer `sync` with entropy control."""

    mode = "sync"


@register_trainer(trainer_name("colocate_async"))
class EntropyControlColocateAsync(EntropyControlMixin, PPOTrainerColocateAsync):
    """verl's trainer `colocate_async` with entropy control."""

    mode = "colocate_async"


@register_trainer(trainer_name("separate_async"))
class EntropyControlSeparateAsync(EntropyControlMixin, PPOTrainerSeparateAsync):
    """verl's trainer `separate_async` with entropy control."""

    mode = "separate_async"
