"""Adapter of verl: applies a decision to a training batch and scores it again afterwards."""

from __future__ import annotations

from collections.abc import Iterable
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
        step, optimizer_steps: see `StepInfo`.
        measured: what `measure` found before the update; None reads what verl's own pass left.
        unscored: whether there was no pass; then the entropy is estimated from the rollout
            engine's log-probabilities.
    """

    def __init__(
        self,
        trainer: Any,
        batch: Any,
        metrics: dict,
        step: int,
        optimizer_steps: float,
        measured: dict[str, Tensor] | None,
        unscored: bool = False,
    ) -> None:
        self.method = trainer.entropy_control
        self.processes = Processes()  # verl's driver sees all rollouts
        self.batch = batch
        self._trainer, self._metrics = trainer, metrics
        momentum = OmegaConf.select(trainer.config, "actor_rollout_ref.actor.optim.betas[0]")
        self._step = StepInfo(step, optimizer_steps, momentum)
        self._rollouts = Trajectories(self._read(measured, unscored))
        algorithm = trainer.config.algorithm
        # but for grpo verl gives each row of a rollout a reward and an advantage of its own
        single = len(self._rollouts) == len(self._real)
        own_baseline = algorithm.adv_estimator in _OWN_BASELINE and not algorithm.use_kl_in_reward
        if own_baseline and (single or algorithm.adv_estimator == "grpo"):
            self._rollouts = self._rollouts.without_rounding_noise()

    def _read(self, measured: dict[str, Tensor] | None, unscored: bool) -> Rows:
        """Read the batch; rows that only fill it up are left out."""
        names = ["advantages", "response_mask", "rm_scores"]
        if measured is None:
            names += ["old_log_probs"] if unscored else ["old_log_probs", "entropy"]
            names += [SENSITIVITY] if self.method.effect in TOKEN_LEVELS else []
        data = _fetch(self.batch, names)
        _demand(data, names)
        self._nested_mask = mask = data["response_mask"]  # gives rows their lengths
        if measured is None:
            logprobs = data["old_log_probs"]
            entropies = -logprobs if unscored else data["entropy"]
            measured = {"logprobs": logprobs, "entropies": entropies}
            if SENSITIVITY in names:
                measured["sensitivity"] = response_from_nested(data[SENSITIVITY], mask)
        actor = self._trainer.config.actor_rollout_ref.actor
        averages = averages_rows(actor)
        real = [row for row, tag in enumerate(self.batch.tags) if not tag.get("is_padding", False)]
        self._real = real
        signals = {name: _padded(values).float()[real] for name, values in measured.items()}
        return Rows(
            keys=[self.batch.keys[row] for row in real],
            advantages=_padded(data["advantages"]).float()[real],
            mask=_padded(mask).bool()[real],
            logprobs=signals["logprobs"],
            entropies=signals["entropies"],
            sensitivity=signals.get("sensitivity"),
            rewards=_padded(data["rm_scores"]).float().sum(1)[real],
            mean_of_rows=averages,
            by_row=averages or actor.loss_agg_mode.startswith("seq-mean"),
        )

    def step_info(self) -> StepInfo:
        return self._step

    def local_stats(self) -> RolloutStats:
        return self._rollouts.stats()

    def complete(self, stats: RolloutStats) -> RolloutStats:
        return stats  # prompts, rewards and weights are read with the rows

    def write(self, decision: Decision, advantages: Tensor, stats: RolloutStats) -> None:
        decided = self._reweighed(self._rollouts.advantages(stats, decision))
        everywhere = torch.zeros(len(self.batch), decided.shape[1], dtype=decided.dtype)
        everywhere[self._real] = decided
        fields = TensorDict(
            {"advantages": response_to_nested(everywhere, self._nested_mask)},
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
        tokens = TokenBatch(
            step=self._step.step,
            advantages=advantages,
            mask=rows.mask,
            logprobs=rows.logprobs,
            old_logprobs=rows.logprobs,
            entropies=rows.entropies,
            old_entropies=rows.entropies,
            sensitivity=rows.sensitivity,
        )
        return self.method.reweigh(tokens).to(advantages.dtype)

    def log(self, metrics: dict[str, float]) -> None:
        self._metrics.update(metrics)

    def remeasure(self, batch: Any, metrics: dict) -> None:
        """Score a share of the prompts once more, after the batch's last update."""
        self.batch, self._metrics = batch, metrics
        rows, prompts = self._rollouts.rows, self._rollouts.group[self._rollouts.owner]
        before = ScoredTokens(rows.mask, rows.logprobs, rows.entropies, prompts)
        run_remeasure(self, before, self._trained)

    def score(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """One pass over the chosen rows, and more of the batch's for workers to share evenly."""
        wanted = [self._rollouts.rows.keys[row] for row in chosen.tolist()]
        others = [key for key in self.batch.keys if key not in set(wanted)]
        micro = self._trainer.config.actor_rollout_ref.rollout.get(
            "log_prob_micro_batch_size_per_gpu"
        )
        unit = int(micro or 1) * int(self._trainer.actor_rollout_wg.world_size)
        keys = [*wanted, *others[: -len(wanted) % unit]]
        part = self.batch if len(keys) % unit else self.batch.select_keys(keys)
        found = measure(self._trainer, part)
        place = {key: row for row, key in enumerate(part.keys)}
        rows = torch.tensor([place[key] for key in wanted])
        width = self._rollouts.rows.mask.shape[1]

        def fitted(values: Tensor) -> Tensor:
            """Cut to `width` columns, or filled up with 0."""
            return torch.nn.functional.pad(values, (0, width - values.shape[1]))

        return fitted(found["logprobs"][rows]), fitted(found["entropies"][rows])


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
        calculate_entropy=True,
        compute_loss=False,
        # left behind by an update that distills; without a loss there is nothing to distill
        distillation_use_topk=False,
        distillation_only=False,
        temperature=trainer.config.actor_rollout_ref.rollout.temperature,
        **{FLAG: sensitivity},
    )
    old = _fetch(batch, ["entropy"])  # the pass writes over it
    try:
        trainer.actor_rollout_wg.compute_log_prob(batch)
    finally:
        batch.extra_info.clear()
        batch.extra_info.update(kept)
    names = {"logprobs": "log_probs", "entropies": "entropy"}
    if sensitivity:
        names["sensitivity"] = SENSITIVITY
    data = _fetch(batch, [*names.values(), "response_mask"])
    _demand(data, names.values())
    mask = data["response_mask"]
    found = {
        ours: _padded(response_from_nested(data[field], mask)) for ours, field in names.items()
    }
    if "entropy" in set(old.keys()):
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=old)
    return found


def _fetch(batch: Any, fields: list[str]) -> Any:
    return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)


def _demand(data: Any, fields: Iterable[str]) -> None:
    """Refuse to go on without what the engine should have served.

    Raises:
        RuntimeError: names what is missing, and the way out.
    """
    missing = set(fields) - set(data.keys())
    if SENSITIVITY in missing:
        raise RuntimeError(
            "the engine has served no token sensitivities for the level 'logit': only verl's "
            "FSDP engines do, in processes that have imported entrocraft.verl (install "
            "entrocraft on every node, or forward VERL_USE_EXTERNAL_MODULES=entrocraft.verl "
            "through ray_kwargs.ray_init.runtime_env.env_vars); otherwise use "
            "+entrocraft.effect=sampled"
        )
    if missing:
        raise RuntimeError(
            f"verl's batch has no {', '.join(sorted(missing))}; supported is verl {SUPPORTED}"
        )


def _padded(values: Tensor) -> Tensor:
    """(R, T) from a nested tensor, 0 beyond each row's end."""
    return torch.nested.to_padded_tensor(values, 0) if values.is_nested else values
