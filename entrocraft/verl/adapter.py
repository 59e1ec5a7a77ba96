"""Adapter of verl: applies a decision to a training batch and scores it again afterwards."""

from __future__ import annotations

from typing import Any

import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor
from verl.workers.utils.padding import response_from_nested, response_to_nested

from entrocraft.adapter import Adapter, Processes, ScoredTokens, run_remeasure
from entrocraft.effects import TOKEN_LEVELS
from entrocraft.method import Decision
from entrocraft.rollouts import RolloutStats, StepInfo, TokenBatch
from entrocraft.verl.engine import FLAG, SENSITIVITY
from entrocraft.verl.plugin import SUPPORTED
from entrocraft.verl.trajectories import Rows, Trajectories

__all__ = ["TrainingBatch", "averages_rows", "measure"]

_AVERAGE_ROWS = ("sapo", "geo_mean")
"""verl's losses that average over each row's tokens first, whatever `loss_agg_mode` says."""
_OWN_BASELINE = ("grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo", "gpg")
"""verl's estimators whose advantages are rewards less a mean over the prompt's rollouts."""


class TrainingBatch(Adapter):
    """One training batch of a verl trainer; its rows are held in verl's transfer queue.

    Args:
        trainer: with `entropy_control`.
        batch: verl's metadata of the rows.
        metrics: of verl's training step.
        step: optimizer steps taken before.
        optimizer_steps: that the actor makes of this batch.
        measured: what `measure` found before the update; None reads what verl's own pass left.
    """

    def __init__(
        self,
        trainer: Any,
        batch: Any,
        metrics: dict,
        step: int,
        optimizer_steps: float,
        measured: dict[str, Tensor] | None,
    ) -> None:
        self.method = trainer.entropy_control
        self.processes = Processes()  # verl's driver sees all rollouts
        self.batch = batch
        self._trainer, self._metrics = trainer, metrics
        betas = OmegaConf.select(trainer.config, "actor_rollout_ref.actor.optim.betas")
        self._step = StepInfo(step, optimizer_steps, None if betas is None else float(betas[0]))
        rows, self._nested_mask = self._read(measured)
        rollouts = Trajectories(rows)
        if self._prompts_own_baseline(rollouts):
            rollouts = rollouts.without_rounding_noise()
        self._rollouts = rollouts
        self._trained = torch.zeros(len(rows.keys))

    def _prompts_own_baseline(self, rollouts: Trajectories) -> bool:
        """Whether one reward for all rollouts of a prompt makes advantages of 0."""
        algorithm = self._trainer.config.algorithm
        if algorithm.adv_estimator not in _OWN_BASELINE or algorithm.use_kl_in_reward:
            return False
        # but for grpo verl gives each row of a rollout a reward and an advantage of its own
        single = len(rollouts) == int(rollouts.real.sum())
        return algorithm.adv_estimator == "grpo" or single

    def _read(self, measured: dict[str, Tensor] | None) -> tuple[Rows, Tensor]:
        """Read the batch; also verl's nested response mask, which gives rows their lengths."""
        sensitive = self.method.effect in TOKEN_LEVELS
        names = ["advantages", "response_mask", "old_log_probs", "rm_scores"]
        if measured is None:
            names += ["entropy", SENSITIVITY] if sensitive else ["entropy"]
        data = _fetch(self.batch, names)
        _demand(data, names)
        nested_mask = data["response_mask"]
        if measured is None:
            measured = {
                "logprobs": _padded(data["old_log_probs"]),
                "entropies": _padded(data["entropy"]),
            }
            if sensitive:
                values = response_from_nested(data[SENSITIVITY], nested_mask)
                measured["sensitivity"] = _padded(values)
        actor = self._trainer.config.actor_rollout_ref.actor
        averages = averages_rows(actor)
        rows = Rows(
            keys=list(self.batch.keys),
            padding=torch.tensor([bool(tag.get("is_padding", False)) for tag in self.batch.tags]),
            advantages=_padded(data["advantages"]).float(),
            mask=_padded(nested_mask).bool(),
            logprobs=measured["logprobs"].float(),
            entropies=measured["entropies"].float(),
            sensitivity=measured["sensitivity"].float() if "sensitivity" in measured else None,
            rewards=_padded(data["rm_scores"]).float().sum(1),
            mean_of_rows=averages,
            by_row=averages or actor.loss_agg_mode.startswith("seq-mean"),
        )
        return rows, nested_mask

    def step_info(self) -> StepInfo:
        """Optimizer steps taken, and those that this batch is used for."""
        return self._step

    def local_stats(self) -> RolloutStats:
        """Per-rollout sums, over all rows of each."""
        return self._rollouts.stats()

    def complete(self, stats: RolloutStats) -> RolloutStats:
        """Return them as they are: prompts, rewards and weights are read with the rows."""
        return stats

    def write(self, decision: Decision, advantages: Tensor, stats: RolloutStats) -> None:
        """Put token advantages into verl's transfer queue."""
        decided = self._reweighed(self._rollouts.advantages(stats, decision))
        fields = TensorDict(
            {"advantages": response_to_nested(decided, self._nested_mask)},
            batch_size=len(self.batch),
        )
        self.batch = tq.kv_batch_put(
            keys=self.batch.keys, partition_id=self.batch.partition_id, fields=fields
        )
        self._trained = torch.where(self._rollouts.rows.mask, decided.abs(), 0.0).sum(1)

    def _reweighed(self, advantages: Tensor) -> Tensor:
        """Let a method that weighs the tokens of a batch do so."""
        if self.method.token_scope != "batch":
            return advantages
        rows = self._rollouts.rows
        assert rows.entropies is not None
        real = ~rows.padding
        tokens = TokenBatch(
            step=self._step.step,
            advantages=advantages[real],
            mask=rows.mask[real],
            logprobs=rows.logprobs[real],
            old_logprobs=rows.logprobs[real],
            entropies=rows.entropies[real],
            old_entropies=rows.entropies[real],
            sensitivity=None if rows.sensitivity is None else rows.sensitivity[real],
        )
        weighed = advantages.clone()
        weighed[real] = self.method.reweigh(tokens).to(advantages.dtype)
        return weighed

    def log(self, metrics: dict[str, float]) -> None:
        """Add to verl's metrics of the training step."""
        self._metrics.update(metrics)

    def remeasure(self, batch: Any, metrics: dict) -> None:
        """Score a share of the prompts once more, after the batch's last update."""
        self.batch, self._metrics = batch, metrics
        rollouts, rows, real = self._rollouts, self._rollouts.rows, self._rollouts.real
        assert rows.entropies is not None
        prompts = rollouts.group[rollouts.rollout[real]]
        before = ScoredTokens(rows.mask[real], rows.logprobs[real], rows.entropies[real], prompts)
        run_remeasure(self, before, self._trained[real])

    def score(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """One pass over some of the rows that belong to rollouts, as many as workers can share."""
        names, real = self._rollouts.rows.keys, self._rollouts.real.nonzero().flatten()
        wanted = [names[row] for row in real[chosen].tolist()]
        others = [name for name in names if name not in set(wanted)]
        unit = self._rows_at_a_time()
        keys = [*wanted, *others[: -len(wanted) % unit]]
        part = self.batch if len(keys) % unit else self.batch.select_keys(keys)
        found = measure(self._trainer, part)
        place = {key: row for row, key in enumerate(part.keys)}
        rows = torch.tensor([place[key] for key in wanted])
        width = self._rollouts.rows.mask.shape[1]
        logprobs, entropies = (found[name][rows] for name in ("logprobs", "entropies"))
        return _widened(logprobs, width), _widened(entropies, width)

    def _rows_at_a_time(self) -> int:
        """Rows that the workers can share evenly, in whole micro-batches."""
        rollout = self._trainer.config.actor_rollout_ref.rollout
        micro = rollout.get("log_prob_micro_batch_size_per_gpu") or 1
        return int(micro) * int(self._trainer.actor_rollout_wg.world_size)


def averages_rows(actor: Any) -> bool:
    """Whether an actor's loss averages over each row's tokens first."""
    return (
        actor.loss_agg_mode == "seq-mean-token-mean"
        or actor.policy_loss.get("loss_mode") in _AVERAGE_ROWS
    )


def measure(trainer: Any, batch: Any, sensitivity: bool = False) -> dict[str, Tensor]:
    """One forward pass over a batch: padded (R, T) log-probabilities, entropies and more."""
    kept = dict(batch.extra_info)
    batch.extra_info.update(
        {
            "calculate_entropy": True,
            "compute_loss": False,
            # left behind by an update that distils; without a loss there is nothing to distil
            "distillation_use_topk": False,
            "distillation_only": False,
            "temperature": trainer.config.actor_rollout_ref.rollout.temperature,
            FLAG: sensitivity,
        }
    )
    old = _fetch(batch, ["entropy"])  # the pass writes over it
    trainer.actor_rollout_wg.compute_log_prob(batch)
    batch.extra_info.clear()
    batch.extra_info.update(kept)
    names = {"log_probs": "logprobs", "entropy": "entropies"}
    if sensitivity:
        names[SENSITIVITY] = "sensitivity"
    data = _fetch(batch, [*names, "response_mask"])
    mask = data["response_mask"]
    _demand(data, names)
    found = {
        ours: _padded(response_from_nested(data[field], mask)) for field, ours in names.items()
    }
    if "entropy" in set(old.keys()):
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=old)
    return found


def _fetch(batch: Any, fields: list[str]) -> Any:
    return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)


def _demand(data: Any, fields: Any) -> None:
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


def _padded(nested: Tensor) -> Tensor:
    """(R, T) from a nested tensor, 0 beyond each row's end."""
    return torch.nested.to_padded_tensor(nested, 0) if nested.is_nested else nested


def _widened(values: Tensor, width: int) -> Tensor:
    """(n, T) cut or filled up with 0 to `width` columns."""
    short = width - values.shape[1]
    return torch.nn.functional.pad(values, (0, short)) if short > 0 else values[:, :width]
