"""Adapter: what an engine provides so that a method decides on its rollouts.

An engine's adapter reads one batch, writes advantages back and logs; `run_decision` does the rest,
the same for all engines: every process validates before any goes on, all see all rollouts, one
decision holds for all. `run_remeasure` scores a share of the prompts once more after the update.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from entrocraft.method import Decision, Method
from entrocraft.post_update import change_stats, choose_prompts, report_change
from entrocraft.rollouts import RolloutStats, StepInfo

__all__ = ["Adapter", "Processes", "ScoredTokens", "gather_stats", "run_decision", "run_remeasure"]

_T = TypeVar("_T")
_COLUMNS = ("advantages", "tokens", "logprob", "entropy", "sensitivity", "rewards", "group")


class Processes:
    """The processes that share a rollout batch; as it stands, a single one.

    Attributes:
        count: how many there are.
        index: which of them this is, from 0.
    """

    count = 1
    index = 0

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate the rows (b, ...) of all processes in their order; every process calls it."""
        return rows

    def broadcast(self, values: Tensor) -> Tensor:
        """Return the first process's values; every process calls it."""
        return values

    def together(self, compute: Callable[[], _T]) -> _T:
        """Return `compute()`; a ValueError on one process stops all of them.

        Raises:
            ValueError: of this process, or one that names the process that failed.
        """
        error: ValueError | None = None
        try:
            result = compute()
        except ValueError as found:
            error = found
        failed = self.gather(torch.tensor([float(error is not None)])).nonzero().flatten()
        if error is not None:
            raise error
        if len(failed):
            raise ValueError(f"the rollouts of rank {int(failed[0])} are invalid; see its error")
        return result


@dataclass(frozen=True)
class ScoredTokens:
    """Log-probabilities and entropies of rollouts under one policy, (b, T) nats each.

    `mask` (b, T) is true on response tokens, `prompts` (b,) numbers the prompts over all processes;
    `spread` tells whether a prompt's rollouts may lie on several processes.
    """

    mask: Tensor
    logprobs: Tensor
    entropies: Tensor
    prompts: Tensor
    spread: bool = False


class Adapter(ABC):
    """One rollout batch of one engine, as `run_decision` needs it.

    Attributes:
        method: that decides.
        processes: that share the batch.
    """

    method: Method
    processes: Processes

    @abstractmethod
    def local_stats(self) -> RolloutStats:
        """Per-rollout sums of this process's rollouts.

        Raises:
            ValueError: a batch that makes no sense; the message names the place and the remedy.
        """

    @abstractmethod
    def complete(self, stats: RolloutStats) -> RolloutStats:
        """Add what all processes know of all rollouts: rewards, groups, the loss's weights."""

    @abstractmethod
    def step_info(self) -> StepInfo:
        """Position of the batch in the run."""

    @abstractmethod
    def write(self, decision: Decision, advantages: Tensor, stats: RolloutStats) -> None:
        """Put (b,) advantages of this process's rollouts into the engine's batch.

        `decision` and the `stats` that it was made on are of all processes' rollouts.
        """

    @abstractmethod
    def log(self, metrics: dict[str, float]) -> None:
        """Hand numbers to the engine's log."""

    def score(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (n, T) of some rollouts under the present policy.

        Args:
            chosen: (n,), row numbers among this process's rollouts, rising.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot score a batch once more")


def run_decision(adapter: Adapter) -> Decision | None:
    """Let the method decide on one batch and write its advantages; every process calls it.

    Returns:
        The decision on all processes' rollouts, or None where no response token is left: there is
        nothing to measure and nothing to train on.

    Raises:
        ValueError: a batch that makes no sense on any process; nothing was changed.
    """
    processes = adapter.processes
    local = processes.together(adapter.local_stats)
    rows = slice(None)
    if processes.count > 1:
        sizes = processes.gather(torch.tensor([float(len(local))]))
        start = int(sizes[: processes.index].sum())
        rows = slice(start, start + len(local))
        local = gather_stats(processes, local)
    stats = adapter.complete(local).without_rounding_noise()
    if stats.total_tokens == 0:
        return None
    decision = adapter.method.decide(stats, adapter.step_info())
    advantages = processes.broadcast(decision.advantages)
    adapter.write(decision, advantages[rows], stats)
    adapter.log(decision.metrics)
    return decision


def gather_stats(processes: Processes, local: RolloutStats) -> RolloutStats:
    """All processes' rollouts; what `Adapter.complete` adds is not exchanged."""
    names = [name for name in _COLUMNS if getattr(local, name) is not None]
    columns = torch.stack([getattr(local, name).double() for name in names], dim=1)
    found: dict[str, Any] = dict(zip(names, processes.gather(columns).unbind(1), strict=True))
    if "group" in found:
        found["group"] = found["group"].long()
    return RolloutStats(**found)


def run_remeasure(adapter: Adapter, before: ScoredTokens, trained: Tensor) -> None:
    """Score a share of the prompts once more and report the post-update change to the method.

    Every process calls it, after the batch's last update; each scores equally many of its own
    prompts, or all where prompts are spread over processes.

    Args:
        adapter: of the batch; its `score` is asked for the chosen rollouts.
        before: this process's rollouts under the policy before the update.
        trained: (b,) advantages as trained on.
    """
    prompts, processes = torch.unique(before.prompts), adapter.processes
    if before.spread:
        chosen = torch.arange(len(before.prompts))
    else:
        step = adapter.step_info().step
        picked = choose_prompts(adapter.method, step, len(prompts), processes.index)
        chosen = torch.isin(before.prompts, prompts[picked]).nonzero().flatten()
    logprobs, entropies = adapter.score(chosen)
    stats = change_stats(
        before.mask[chosen], before.logprobs[chosen], logprobs, before.entropies[chosen], entropies
    )
    columns = [stats, trained[chosen].detach().cpu()[:, None], before.prompts[chosen][:, None]]
    found = processes.gather(torch.cat([column.double() for column in columns], dim=1))
    adapter.log(report_change(adapter.method, found[:, :4], found[:, 4], found[:, 5].long()))
