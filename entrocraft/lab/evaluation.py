"""Evaluation of a policy on held-out problems: pass@k and its kin, and entropy on a fixed probe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from entrocraft.effects import token_statistics
from entrocraft.lab.tasks import Problem, Task
from entrocraft.lab.tasks.prompts import as_completion, text_prompt
from entrocraft.rollouts import RolloutStats


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error over problems."""

    value: float
    stderr: float


@dataclass(frozen=True)
class Evaluation:
    """Behavior of a policy on a set of problems."""

    entropy: Estimate  # token mean over responses at the sampling temperature, nats per token
    correct: Tensor  # (problems,) number of right answers among `samples`
    samples: int  # completions per problem
    length: float  # mean response length in tokens, end token included
    finished: float  # share of responses that end by themselves
    # of each problem: result of a completion -> how many have it, and whether they are right
    results: tuple[dict[str, tuple[int, bool]], ...] = ()
    # (problems, samples), nan where the reward has no say; a reward of at least 1 is a right answer
    rewards: Tensor = field(default_factory=lambda: torch.empty(0))

    def pass_at(self, k: int) -> Estimate:
        """Probability that at least one of k samples is right; unbiased, see `pass_at_k`."""
        return _over_problems([pass_at_k(self.samples, int(c), k) for c in self.correct])

    def cover_at(self, threshold: float) -> Estimate:
        """Cover@tau: share of the problems that at least this share of the samples solves.

        2510.08325; beyond 0.5 a voter would be right, small thresholds show what is in reach.
        """
        return _over_problems([float(c >= threshold * self.samples) for c in self.correct])

    def distinct(self) -> Estimate:
        """Mean number of different right results among the samples of a problem."""
        return _over_problems([sum(right for _, right in found.values()) for found in self.results])

    def majority_at(self, k: int, draws: int = 200) -> Estimate:
        """Probability that the most frequent result of k samples is right; ties are drawn.

        Mean over `draws` random subsets of the samples, from a fixed seed.

        Raises:
            ValueError: k is above the number of samples.
        """
        if not 1 <= k <= self.samples:
            raise ValueError(f"majority@{k} needs at least {k} samples a problem")
        rng = np.random.default_rng(0)
        return _over_problems([_majority(found, k, draws, rng) for found in self.results])

    def metrics(self) -> dict[str, float]:
        """Return everything above under the keys of docs/metrics.md.

        pass@k at k = 1, 8, 64, ... and at the number of samples, with standard errors.
        """
        ks = [8**power for power in range(10) if 8**power < self.samples] + [self.samples]
        found: dict[str, float] = {}
        for k in ks:
            estimate = self.pass_at(k)
            found |= {f"eval/pass@{k}": estimate.value, f"eval/pass@{k}_stderr": estimate.stderr}
        if self.samples > 1:
            curve = [self.pass_at(k).value for k in range(1, self.samples + 1)]
            found |= {f"eval/cover@{share}": self.cover_at(share).value for share in (0.1, 0.5)}
            found["eval/majority"] = self.majority_at(self.samples, draws=1).value
            found["eval/distinct"] = self.distinct().value
            found["eval/sharpening"] = sharpening(curve)
        return found


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased pass@k of one problem, ``1 - C(n - c, k) / C(n, k)`` (Chen et al., 2021, eq. 1).

    >>> pass_at_k(samples=4, correct=1, k=1), pass_at_k(samples=4, correct=1, k=4)
    (0.25, 1.0)
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, got {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def sharpening(curve: Sequence[float]) -> float:
    """How much of pass@K the pass@k below it miss, as a share of what pass@1 leaves to gain.

    ``S = sum over k < K of (pass@K - pass@k) / ((K - 1) (1 - pass@1))`` (2610.01509), 0 where
    nothing is left. `curve` has pass@1 to pass@K.

    >>> sharpening([0.5, 0.75, 1.0])
    0.75
    """
    left = (len(curve) - 1) * (1 - curve[0])
    return float(sum(curve[-1] - value for value in curve[:-1]) / left) if left > 0 else 0.0


def sharpening_tax(
    before: Evaluation, after: Evaluation, most: int = 128, resamples: int = 1000
) -> tuple[float, float, float]:
    """Sharpening tax: `sharpening` of a policy before training less that after it (2610.01509).

    Args:
        before, after: on the same problems.
        most: largest k that counts.
        resamples: of the problems, in pairs, from a fixed seed.

    Returns:
        The tax and its 95 % bootstrap interval.
    """
    if len(before.correct) != len(after.correct):
        raise ValueError(
            f"{len(before.correct)} problems before and {len(after.correct)} after; the tax needs "
            "the same problems"
        )
    if not 2 <= most <= min(before.samples, after.samples):
        raise ValueError(f"most={most}; use at least 2, and at most the samples of a problem")
    first, last = (
        np.array([[pass_at_k(e.samples, int(c), k) for k in range(1, most + 1)] for c in e.correct])
        for e in (before, after)
    )

    def tax(rows: Any) -> float:
        return sharpening(first[rows].mean(0)) - sharpening(last[rows].mean(0))

    rng, size = np.random.default_rng(0), len(first)
    found = [tax(rng.integers(size, size=size)) for _ in range(resamples)]
    low, high = np.quantile(found, [0.025, 0.975])
    return tax(slice(None)), float(low), float(high)


def _over_problems(values: Sequence[float]) -> Estimate:
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(float(np.mean(values)), spread)


def _majority(
    found: dict[str, tuple[int, bool]], k: int, draws: int, rng: np.random.Generator
) -> float:
    counts = np.array([count for count, _ in found.values()])
    right = np.array([is_right for _, is_right in found.values()], dtype=float)
    drawn = rng.multivariate_hypergeometric(counts, k, size=draws)
    leads = drawn == drawn.max(axis=1, keepdims=True)
    return float(((leads * right).sum(1) / leads.sum(1)).mean())


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    seed: int | None = 0,
    special_tokens: bool = True,
    sampling: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Complete prompts; the global random state is left as it was.

    Args:
        prompts: B of them.
        max_new_tokens: longest completion, end token included.
        seed: of the sampling; None decodes greedily.
        special_tokens: let the tokenizer add its own; a rendered chat template has them already.
        sampling: further options of transformers' `GenerationConfig`, such as top_p. The model's
            own generation defaults are left out, as in training.

    Returns:
        Token ids (B, P + T), attention mask of the prompts (B, P), and mask of response tokens,
        end token included, (B, T).
    """
    padded = {"return_tensors": "pt", "padding": True, "padding_side": "left"}
    batch = tokenizer(list(prompts), add_special_tokens=special_tokens, **padded).to(model.device)
    options: dict[str, Any] = {"do_sample": False}
    if seed is not None:
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        options |= sampling or {}
    generation = GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **options,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    # `generate` fills gaps in the options from the model's own defaults
    before, model.generation_config = model.generation_config, generation
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed or 0)
            ids = model.generate(  # type: ignore[operator]
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )
    finally:
        model.generation_config = before
    ended = ids[:, batch["input_ids"].shape[1] :] == tokenizer.eos_token_id
    # a token is in the response unless an end token came before it
    return ids, batch["attention_mask"], ended.cumsum(1) - ended.long() == 0


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Problem],
    *,
    samples: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int | None = 0,
    chat: bool = False,
    batch_size: int = 1024,
    sampling: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Sample each problem `samples` times, verify the answers, measure the entropy.

    The same seed and weights give the same result. Dropout is off, the training mode is put back.
    Entropy is that of the softmax at `temperature`, before top_p and the like.
    """
    asked = [problem for problem in problems for _ in range(samples)]
    training, parts, results = model.training, [], []
    model.eval()
    try:
        for start in range(0, len(asked), batch_size):
            part = asked[start : start + batch_size]
            ids, attention, mask = sample(
                model,
                tokenizer,
                [text_prompt(problem, tokenizer, chat) for problem in part],
                max_new_tokens,
                temperature=temperature,
                seed=None if seed is None else seed + start,
                special_tokens=not chat,
                sampling=sampling,
            )
            answers = ids[:, -mask.shape[1] :]
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            said = [as_completion(text, chat) for text in texts]
            scores = [math.nan if score is None else score for score in task.rewards(part, said)]
            results += [task.result(text) for text in texts]
            nats = (_entropies(model, ids, attention, mask, temperature) * mask).sum(1)
            ended = ((answers == tokenizer.eos_token_id) & mask).any(1)
            columns = [nats, mask.sum(1), torch.tensor(scores), ended]
            parts.append(torch.stack([column.double().cpu() for column in columns]))
    finally:
        model.train(training)
    entropies, lengths, rewards, finished = torch.cat(parts, dim=1)
    correct = (rewards >= 1).double()
    stats = RolloutStats(
        advantages=torch.zeros_like(lengths),
        tokens=lengths,
        logprob=-entropies,
        entropy=entropies,
        group=torch.arange(len(asked)) // samples,
    )
    return Evaluation(
        entropy=Estimate(stats.mean_entropy(), stats.entropy_stderr()),
        correct=correct.view(-1, samples).sum(1),
        samples=samples,
        length=float(lengths.mean()),
        finished=float(finished.mean()),
        rewards=rewards.view(-1, samples),
        results=tuple(_counted(results, correct.tolist(), samples)),
    )


def _counted(
    results: Sequence[str], correct: Sequence[float], samples: int
) -> Iterator[dict[str, tuple[int, bool]]]:
    """Of each problem: how many samples have a result, and whether it is right."""
    for start in range(0, len(results), samples):
        found: dict[str, tuple[int, bool]] = {}
        for place in range(start, start + samples):
            count, right = found.get(results[place], (0, False))
            found[results[place]] = count + 1, right or correct[place] > 0
        yield found


@torch.no_grad()
def _entropies(
    model: PreTrainedModel, ids: Tensor, attention: Tensor, mask: Tensor, temperature: float
) -> Tensor:
    """Entropy of the distribution that each response token was drawn from: (B, T), nats."""
    width = mask.shape[1]
    full = torch.cat([attention, mask.to(attention.dtype)], dim=1)
    rows = max(1, 2**26 // (ids.shape[1] * model.config.get_text_config().vocab_size))
    parts = []
    for start in range(0, len(ids), rows):
        part = ids[start : start + rows]
        logits = model(part, attention_mask=full[start : start + rows]).logits[:, -width - 1 : -1]
        parts.append(token_statistics(logits, part[:, -width:], temperature).entropy)
    return torch.cat(parts)
