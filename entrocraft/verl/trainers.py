"""verl's V1 trainers with entropy control, registered under names of their own."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import OmegaConf, open_dict
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.workers.utils.padding import response_from_nested, response_to_nested

from entrocraft.effects import TOKEN_LEVELS
from entrocraft.method import Decision, EntropyMethod
from entrocraft.post_update import change_sums, report_change
from entrocraft.rollouts.tokens import TokenBatch
from entrocraft.verl.checkpoint import checkpoint_folder, read_memory, write_memory
from entrocraft.verl.engine import FLAG, SENSITIVITY
from entrocraft.verl.plugin import SUPPORTED, trainer_name
from entrocraft.verl.settings import method_of
from entrocraft.verl.trajectories import Rows, Trajectories

_Trainer: Any = object  # for the type checker: the mixin's next class is one of verl's trainers

__all__ = [
    "EntropyControlColocateAsync",
    "EntropyControlMixin",
    "EntropyControlSeparateAsync",
    "EntropyControlSync",
    "check_seams",
]

_SEAMS = {
    "fit": ["self", "agent_loop_manager"],
    "_compute_old_log_prob": ["self", "batch", "metrics"],
    "_compute_advantage": ["self", "batch", "metrics"],
    "_update_actor": ["self", "batch", "metrics"],
    "_save_checkpoint": ["self"],
    "_load_checkpoint": ["self"],
}


_AVERAGE_ROWS = ("sapo", "geo_mean")
"""verl's losses that average over each row's tokens first, whatever `loss_agg_mode` says."""
_OWN_BASELINE = ("grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo", "gpg")
"""verl's estimators whose advantages are rewards less a mean over the prompt's rollouts."""


def check_seams(trainer: type) -> None:
    """Refuse a verl whose trainer has other methods than those that are overridden here.

    Raises:
        RuntimeError: names the method.
    """
    for name, wanted in _SEAMS.items():
        method = getattr(trainer, name, None)
        found = None if method is None else list(inspect.signature(method).parameters)
        if found != wanted:
            state = "is missing" if found is None else f"takes ({', '.join(found)})"
            raise RuntimeError(
                f"verl's {trainer.__name__}.{name} {state}, entrocraft expects "
                f"({', '.join(wanted)}): this verl is not known. Supported is verl {SUPPORTED}"
            )


class EntropyControlMixin(_Trainer):
    """Adds entropy control to one of verl's V1 trainers: put it before the trainer's class.

    After verl has computed advantages, the method decides once on the rollouts of a batch; rows of
    one rollout share its fate, rows of padding have none. Masks and normalizers stay verl's.
    The schedule's clock counts optimizer steps: a batch that makes four mini-batches takes four.

    Attributes:
        mode: verl's own name of the trainer.
        entropy_control: the method, from the section `entrocraft` of the configuration.
        last_decision: on the latest batch; None before the first.
    """

    mode: str
    entropy_control: EntropyMethod
    last_decision: Decision | None

    def __init__(self, config: Any) -> None:
        self.entropy_control = method_of(config)
        self.last_decision = None
        self._optimizer_steps = 0.0
        self._before: tuple[Trajectories, Tensor] | None = None
        self._measured: dict[str, Any] | None = None
        with open_dict(config):
            # verl compares the mode with its own names, and looks up settings by it
            config.trainer.v1.trainer_mode = self.mode
        super().__init__(config)

    def fit(self, agent_loop_manager: Any) -> None:
        """Check the schedule over the whole run, then train."""
        self.entropy_control.prepare(
            vocabulary=max(len(self.tokenizer), self.tokenizer.vocab_size),
            steps=round(self.total_training_steps * self._usual_steps()),
        )
        super().fit(agent_loop_manager)

    @property
    def _actor(self) -> Any:
        return self.config.actor_rollout_ref.actor

    def _usual_steps(self) -> float:
        """Optimizer steps of a training step, as configured."""
        actor = self._actor
        return self.config.data.train_batch_size / actor.ppo_mini_batch_size * actor.ppo_epochs

    # What verl measures ---------------------------------------------------------------------

    def _compute_old_log_prob(self, batch: Any, metrics: dict) -> Any:
        self._measured = None
        if self._bypasses():
            # verl makes no pass here; the old log-probabilities stay those of the rollouts
            batch = super()._compute_old_log_prob(batch, metrics)
            self._measured = self._measure(batch, sensitivity=self._needs_sensitivity)
            return batch
        if self._needs_sensitivity:
            batch.extra_info[FLAG] = True
        batch = super()._compute_old_log_prob(batch, metrics)
        batch.extra_info.pop(FLAG, None)
        return batch

    def _bypasses(self) -> bool:
        correction = self.config.algorithm.get("rollout_correction", None)
        return bool(correction and correction.get("bypass_mode", False))

    @property
    def _needs_sensitivity(self) -> bool:
        return self.entropy_control.effect in TOKEN_LEVELS

    def _measure(self, batch: Any, sensitivity: bool = False) -> dict[str, Tensor]:
        """One forward pass over a batch: padded (R, T) log-probabilities, entropies and more."""
        kept = dict(batch.extra_info)
        batch.extra_info.update(
            {
                "calculate_entropy": True,
                "compute_loss": False,
                # left behind by an update that distils; without a loss there is nothing to distil
                "distillation_use_topk": False,
                "distillation_only": False,
                "temperature": self.config.actor_rollout_ref.rollout.temperature,
                FLAG: sensitivity,
            }
        )
        old = self._fetch(batch, ["entropy"])  # the pass writes over it
        self.actor_rollout_wg.compute_log_prob(batch)
        batch.extra_info.clear()
        batch.extra_info.update(kept)
        names = {"log_probs": "logprobs", "entropy": "entropies"}
        if sensitivity:
            names[SENSITIVITY] = "sensitivity"
        data = self._fetch(batch, [*names, "response_mask"])
        mask = data["response_mask"]
        self._demand(data, names)
        found = {
            ours: _padded(response_from_nested(data[field], mask)) for field, ours in names.items()
        }
        if "entropy" in set(old.keys()):
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=old)
        return found

    def _fetch(self, batch: Any, fields: list[str]) -> Any:
        return tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=fields
        )

    def _demand(self, data: Any, fields: Any) -> None:
        """Refuse to go on without what the engine should have served.

        Raises:
            RuntimeError: names what is missing, and the way out.
        """
        served = set(data.keys())
        if SENSITIVITY in fields and SENSITIVITY not in served:
            raise RuntimeError(
                "the engine has served no token sensitivities for the level 'logit': only verl's "
                "FSDP engines do, in processes that have imported entrocraft.verl (install "
                "entrocraft on every node, or forward VERL_USE_EXTERNAL_MODULES=entrocraft.verl "
                "through ray_kwargs.ray_init.runtime_env.env_vars); otherwise use "
                "+entrocraft.effect=sampled"
            )
        if missing := [field for field in fields if field not in served]:
            raise RuntimeError(
                f"verl's batch has no {', '.join(missing)}; supported is verl {SUPPORTED}"
            )

    # The decision ---------------------------------------------------------------------------

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        batch = super()._compute_advantage(batch, metrics)
        self._before = None
        if self.config.trainer.critic_warmup > self.global_steps:
            return batch  # the actor is not updated yet
        rows, nested_mask = self._rows(batch)
        rollouts = Trajectories(rows)
        if not bool(rows.mask[rollouts.real].any()):
            return batch  # nothing to measure, nothing to train on
        if self._prompts_own_baseline(rollouts):
            rollouts = rollouts.without_rounding_noise()
            rows = rollouts.rows
        stats = rollouts.stats()
        decision = self.entropy_control.decide(
            stats,
            step=round(self._optimizer_steps),
            optimizer_steps=self._steps_of(batch),
            momentum=self._momentum(),
        )
        advantages = rollouts.advantages(stats, decision)
        advantages = self._reweighed(rows, advantages)
        fields = TensorDict(
            {"advantages": response_to_nested(advantages, nested_mask)}, batch_size=len(batch)
        )
        batch = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        self.last_decision = decision
        metrics.update(decision.metrics)
        self._before = rollouts, rollouts.trained(advantages)
        return batch

    def _prompts_own_baseline(self, rollouts: Trajectories) -> bool:
        """Whether rewards that are alike within a prompt make advantages of 0."""
        estimator = self.config.algorithm.adv_estimator
        if estimator not in _OWN_BASELINE or self.config.algorithm.use_kl_in_reward:
            return False
        # but for grpo verl gives each row of a rollout a reward and an advantage of its own
        return estimator == "grpo" or len(rollouts) == int(rollouts.real.sum())

    def _rows(self, batch: Any) -> tuple[Rows, Tensor]:
        """Read the batch; also verl's nested response mask, which gives rows their lengths."""
        names = ["advantages", "response_mask", "old_log_probs", "rm_scores"]
        if self._measured is None:
            names.append("entropy")
            if self._needs_sensitivity:
                names.append(SENSITIVITY)
        data = self._fetch(batch, names)
        self._demand(data, names)
        nested_mask = data["response_mask"]
        measured = self._measured
        if measured is None:
            measured = {"logprobs": _padded(data["old_log_probs"])}
            measured["entropies"] = _padded(data["entropy"])
            if self._needs_sensitivity:
                measured["sensitivity"] = _padded(
                    response_from_nested(data[SENSITIVITY], nested_mask)
                )
        rows = Rows(
            keys=list(batch.keys),
            padding=torch.tensor([bool(tag.get("is_padding", False)) for tag in batch.tags]),
            advantages=_padded(data["advantages"]).float(),
            mask=_padded(nested_mask).bool(),
            logprobs=measured["logprobs"].float(),
            entropies=measured["entropies"].float(),
            sensitivity=measured["sensitivity"].float() if "sensitivity" in measured else None,
            rewards=_padded(data["rm_scores"]).float().sum(1),
            mean_of_rows=self._averages_rows,
            by_row=self._averages_rows or self._actor.loss_agg_mode.startswith("seq-mean"),
        )
        return rows, nested_mask

    @property
    def _averages_rows(self) -> bool:
        """Whether the loss averages over each row's tokens first."""
        actor = self._actor
        return (
            actor.loss_agg_mode == "seq-mean-token-mean"
            or actor.policy_loss.get("loss_mode") in _AVERAGE_ROWS
        )

    def _reweighed(self, rows: Rows, advantages: Tensor) -> Tensor:
        """Let a method that weighs the tokens of a batch do so."""
        reweigh = getattr(self.entropy_control, "reweigh", None)
        if reweigh is None:
            return advantages
        assert rows.entropies is not None
        real = ~rows.padding
        tokens = TokenBatch(
            step=round(self._optimizer_steps),
            advantages=advantages[real],
            mask=rows.mask[real],
            logprobs=rows.logprobs[real],
            old_logprobs=rows.logprobs[real],
            entropies=rows.entropies[real],
            old_entropies=rows.entropies[real],
            sensitivity=None if rows.sensitivity is None else rows.sensitivity[real],
        )
        weighed = advantages.clone()
        weighed[real] = reweigh(tokens).to(advantages.dtype)
        return weighed

    def _steps_of(self, batch: Any) -> float:
        """Optimizer steps that the actor makes of a batch."""
        actor = self._actor
        rows = actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n
        return len(batch) / rows * actor.ppo_epochs

    def _momentum(self) -> float | None:
        betas = OmegaConf.select(self.config, "actor_rollout_ref.actor.optim.betas")
        return None if betas is None else float(betas[0])

    # The update -----------------------------------------------------------------------------

    def _update_actor(self, batch: Any, metrics: dict) -> Any:
        steps = self._steps_of(batch)
        batch = super()._update_actor(batch, metrics)
        self._optimizer_steps += steps
        before, self._before = self._before, None
        if self.local_trigger_step > 0:
            # separate_async scores later mini-batches of a step under the step's first weights, so
            # what they moved by themselves is not known
            before = None
        if before is not None and getattr(self.entropy_control, "remeasure", False):
            rollouts, trained = before
            rows, real = rollouts.rows, rollouts.real
            after = self._measure(batch)
            assert rows.entropies is not None
            stats = change_sums(
                rows.mask[real],
                rows.logprobs[real],
                after["logprobs"][real],
                rows.entropies[real],
                after["entropies"][real],
            )
            metrics.update(
                report_change(self.entropy_control, rollouts.total(stats), trained, rollouts.group)
            )
        return batch

    # The memory -----------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        # before verl's own files: it names the checkpoint as the latest when it has written all
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        memory = {
            "method": self.entropy_control.state_dict(),
            "optimizer_steps": self._optimizer_steps,
        }
        write_memory(folder, memory)
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps > 0:
            memory = read_memory(checkpoint_folder(self.config, self.global_steps))
            if memory is not None:
                self.entropy_control.load_state_dict(memory["method"])
                self._optimizer_steps = memory["optimizer_steps"]
            else:
                self._optimizer_steps = self.global_steps * self._usual_steps()


def _padded(nested: Tensor) -> Tensor:
    """(R, T) from a nested tensor, 0 beyond each row's end."""
    return torch.nested.to_padded_tensor(nested, 0) if nested.is_nested else nested


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
