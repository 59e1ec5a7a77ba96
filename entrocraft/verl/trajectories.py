"""Trajectories: verl's batch rows to the rollouts of a decision, and back.

An agent may leave several rows for one rollout (session). A decision keeps or rejects whole
rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from entrocraft.method import Decision
from entrocraft.rollouts import RolloutStats

__all__ = ["Rows", "Trajectories"]


@dataclass(frozen=True)
class Rows:
    """A batch of verl's, without rows that only fill it up; (R, T) unless said otherwise.

    Attributes:
        keys: names of the rows, "{uid}_{session}_{index}".
        advantages: of the tokens.
        mask: bool, response tokens.
        logprobs: nats, of the sampled tokens before the update.
        entropies: nats.
        sensitivity: nats per unit of advantage, or None.
        rewards: (R,), the sum of each row's token rewards.
        mean_of_rows: whether the loss averages over each row's tokens first.
        by_row: whether the loss divides by the number of rows, not of tokens.
    """

    keys: Sequence[str]
    advantages: Tensor
    mask: Tensor
    logprobs: Tensor
    entropies: Tensor
    sensitivity: Tensor | None
    rewards: Tensor
    mean_of_rows: bool = False
    by_row: bool = False

    def __post_init__(self) -> None:
        for key in self.keys:
            if len(key.rsplit("_", 2)) != 3 or not key.rsplit("_", 1)[1].isdigit():
                raise ValueError(
                    f"the row {key!r} is not named uid_session_index as verl's rows are, so it is "
                    "not known which rollout it belongs to"
                )


class Trajectories:
    """Rollouts, each with one or several rows.

    Attributes:
        owner: (R,), the rollout of each row.
        group: (B,), the prompt of each rollout.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        sessions: dict[tuple[str, str], int] = {}
        prompts: dict[str, int] = {}
        last: dict[int, tuple[int, int]] = {}
        owner, group = [], []
        for row, key in enumerate(rows.keys):
            uid, session, index = key.rsplit("_", 2)
            if (uid, session) not in sessions:
                sessions[uid, session] = len(sessions)
                group.append(prompts.setdefault(uid, len(prompts)))
            number = sessions[uid, session]
            owner.append(number)
            last[number] = max(last.get(number, (-1, -1)), (int(index), row))
        self.owner = torch.tensor(owner, dtype=torch.long)
        self.group = torch.tensor(group, dtype=torch.long)
        self._last = torch.tensor([last[number][1] for number in range(len(last))])

    def __len__(self) -> int:
        return len(self.group)

    def without_rounding_noise(self) -> Trajectories:
        """Set advantages of prompts whose rollouts have one reward to 0.

        That is what they are where the estimator takes its baseline from the prompt's rollouts, but
        for the last digit of 32 bits, which verl divides by next to no standard deviation: the
        group [0.1, 0.1, 0.1] can come out as 0.11. A rollout without another of its prompt has
        no such baseline: its advantage is its reward, and stays.
        """
        several = torch.bincount(self.group)[self.group] > 1
        zero = (self.stats().constant_reward & several)[self.owner]
        settled = self.rows.advantages.masked_fill(zero[:, None], 0.0)
        return Trajectories(replace(self.rows, advantages=settled))

    def stats(self) -> RolloutStats:
        """Per-rollout sums for a decision, over all rows of each.

        Advantages that differ from token to token (GAE) enter as one number, their root mean square
        with the sign of their mean; what the effect levels add up then makes up for the difference,
        so that the rollout's effect is the sum over tokens of advantage times sensitivity.

        Raises:
            ValueError: a value that is not finite on a response token.
        """
        rows, mask = self.rows, self.rows.mask
        given = self._added("advantages", rows.advantages)
        tokens = self._total(mask.sum(1))
        inside = rows.advantages.double()

        def extreme(which: str, start: float) -> Tensor:
            by_row = getattr(torch.where(mask, inside, start), which)(1)
            found = torch.full_like(tokens, start).scatter_reduce(0, self.owner, by_row, which)
            return torch.where(tokens > 0, found, 0.0)

        low, high = extreme("amin", torch.inf), extreme("amax", -torch.inf)
        same = low == high
        squares = self._total(torch.where(mask, inside, 0.0).square().sum(1))
        size = (squares / tokens.clamp(min=1)).sqrt()
        advantages = torch.where(same, low, torch.where(given < 0, -size, size))

        def by_advantage(name: str, values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            # a rollout without advantage keeps its tokens' own sum: it may yet be given one
            by_token = self._added(name, values * rows.advantages) / advantages
            return torch.where(same, self._added(name, values), by_token)

        differ = not bool(same.all())
        # the mean weight of a token where each row counts as one
        weight = self._total(mask.any(1)) / tokens.clamp(min=1) if rows.mean_of_rows else None
        ones = torch.ones_like(rows.advantages)
        return RolloutStats(
            advantages=advantages,
            tokens=tokens,
            logprob=self._added("logprobs", rows.logprobs),
            entropy=self._added("entropies", rows.entropies),
            sensitivity=by_advantage("sensitivity", rows.sensitivity),
            rewards=rows.rewards.double()[self._last],
            group=self.group,
            token_weight=weight,
            by_rollout=rows.by_row,
            advantage_tokens=by_advantage("advantages", ones) if differ else None,
            advantage_logprob=by_advantage("logprobs", rows.logprobs) if differ else None,
        )

    def _added(self, name: str, values: Tensor) -> Tensor:
        """(B,) sum of (R, T) over the response tokens of each rollout.

        Raises:
            ValueError: a value that is not finite there; names the row.
        """
        inside = torch.where(self.rows.mask, values, 0.0).double()
        bad = ~torch.isfinite(inside).all(1)
        if bool(bad.any()):
            key = self.rows.keys[int(bad.nonzero()[0])]
            raise ValueError(
                f"{name} of the row {key} are not finite on its response tokens; "
                "mask tokens that could not be scored, or give the row an advantage of 0"
            )
        return self._total(inside.sum(1))

    def _total(self, values: Tensor) -> Tensor:
        """(B,) float64 sum of (R,) over the rows of each rollout."""
        zeros = torch.zeros(len(self), dtype=torch.float64)
        return zeros.index_add_(0, self.owner, values.double())

    def advantages(self, stats: RolloutStats, decision: Decision) -> Tensor:
        """(R, T) advantages to train on.

        Weights multiply the tokens' own advantages; where a method puts other advantages in place
        of the estimator's, every token of the rollout gets its rollout's.
        """
        rows = self.rows
        weighted = torch.allclose(decision.advantages, stats.advantages * decision.weights)
        # what the decision took for rounding noise is not trained on
        active = (stats.advantages != 0) * decision.weights
        given = (active if weighted else decision.advantages)[self.owner, None]
        return (rows.advantages if weighted else rows.mask) * given.to(rows.advantages.dtype)
